//! The `WWW-Authenticate` header (RFC 9110, section 11.6.1): several challenges, quoted strings, and nothing else.

/// One challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password.
    Basic,
    /// A token from a token server.
    Bearer(Bearer),
}

/// Parameters of a bearer challenge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) error: Option<String>,
}

/// Parses the challenges of one header. Schemes that are not known are passed over.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut scheme = String::new();
    let mut parameters: Vec<(String, String)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let after = after.trim_start_matches([' ', '\t']);
        if let Some(value) = after.strip_prefix('=') {
            let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
            parameters.push((word.to_ascii_lowercase(), value));
            rest = after;
        } else {
            finish(&mut challenges, &scheme, std::mem::take(&mut parameters));
            scheme = word.to_ascii_lowercase();
            rest = after;
        }
    }
    finish(&mut challenges, &scheme, parameters);
    challenges
}

fn finish(challenges: &mut Vec<Challenge>, scheme: &str, parameters: Vec<(String, String)>) {
    match scheme {
        "basic" => challenges.push(Challenge::Basic),
        "bearer" => {
            let mut bearer = Bearer::default();
            for (name, value) in parameters {
                match name.as_str() {
                    "realm" => bearer.realm = value,
                    "service" => bearer.service = Some(value),
                    "scope" => bearer.scope = Some(value),
                    "error" => bearer.error = Some(value),
                    _ => {}
                }
            }
            if !bearer.realm.is_empty() {
                challenges.push(Challenge::Bearer(bearer));
            }
        }
        _ => {}
    }
}

/// A token or a quoted string, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        let (value, after) = text.split_at(end);
        return (value.to_owned(), after);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let text = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer(Bearer {
            realm: realm.into(),
            service: text(service),
            scope: text(scope),
            error: None,
        })
    }

    #[test]
    fn challenges_are_told_apart() {
        for (header, expected) in [
            (r#"Basic realm="x""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#,
                vec![bearer("https://a/t", Some("s"), Some("repository:a/b:pull,push"))],
            ),
            (
                r#"Negotiate, Bearer realm="https://a/t" , service=s, Basic realm="q\"x, y=z""#,
                vec![bearer("https://a/t", Some("s"), None), Challenge::Basic],
            ),
            (r#"Bearer service="s""#, vec![]),
            ("", vec![]),
            (",,,", vec![]),
            ("=x", vec![]),
            (r#"Bearer realm="unterminated"#, vec![bearer("unterminated", None, None)]),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
    }
}
