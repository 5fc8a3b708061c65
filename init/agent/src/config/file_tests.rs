//! What the machine file accepts and how it refuses.

use super::*;

fn error(text: &str) -> FileError {
    parse(text, "machine.toml").expect_err("this file must be refused")
}

#[test]
fn a_full_file_is_read() {
    let machine = parse(
        r#"
version = 1
[host]
name = "node1.example"
[api]
listen = "0.0.0.0:2377"
client_ca = """
-----BEGIN CERTIFICATE-----
AA==
-----END CERTIFICATE-----
"""
[network]
dns = ["10.0.2.3"]
search = ["example"]
[[network.interface]]
match = "*"
dhcp = true
[[network.interface]]
match = "eth1"
address = ["192.0.2.2/24"]
gateway = "192.0.2.1"
[registries]
insecure = ["10.0.2.2:5000"]
[[container]]
name = "web"
image = "10.0.2.2:5000/demo:latest"
ports = ["8080:80"]
volumes = ["data:/data", "logs:/logs:ro"]
env = { A = "b" }
restart = "on-failure:5"
"#,
        "machine.toml",
    )
    .expect("a legal file");
    assert_eq!(machine.name, "node1.example");
    assert_eq!(machine.api.listen.port(), 2377);
    assert_eq!(machine.network.interfaces.len(), 2);
    assert!(!machine.network.interfaces[1].dhcp);
    assert_eq!(machine.units[0].name, "web");
}

#[test]
fn every_refusal_names_line_key_and_remedy() {
    let cases: &[(&str, usize, &str, &str)] = &[
        ("version = 2\n", 1, "version", "not known"),
        ("[host]\nname = \"a\"\n", 1, "host", "missing field `version`"),
        ("version = 1\nhots = 1\n", 2, "hots", "unknown field `hots`"),
        ("version = 1\n[host]\nname = 5\n", 3, "name", "invalid type"),
        ("version = 1\n[host]\nname = \"a b\"\n", 3, "name", "not a host name"),
        ("version = 1\n[api]\nlisten = \"2376\"\n", 3, "listen", "not an address and port"),
        ("version = 1\n[api]\nclient_ca = \"x\"\n", 3, "client_ca", "not PEM"),
        ("version = 1\n[network]\ndns = [\"x\"]\n", 3, "dns", "not an IP address"),
        ("version = 1\n[registries]\ninsecure = [\"http://x\"]\n", 3, "insecure", "not a host"),
        ("version = 1\n[[container]]\nname = \"a\"\n", 2, "container", "missing field `image`"),
        ("version = 1\n[[container]]\nname = \"a\"\nimage = \"b\"\nport = 1\n", 5, "port", "unknown field"),
        ("version = 1\n[[container]]\nname = \"a\"\nimage = \"b\"\nports = [\"x:y\"]\n", 5, "ports", "not a port"),
        ("version = 1\n[[container]]\nname = \"/\"\nimage = \"b\"\n", 3, "name", "not a container name"),
        ("version = 1\n[[container]]\nname = \"a\"\nimage = \"B:B\"\n", 4, "image", "not an image"),
        ("version = 1\n[[container]]\nname = \"ab\"\nimage = \"b\"\nrestart = \"sometimes\"\n", 5, "restart", "not a restart policy"),
        ("version = 1\n[[container]]\nname = \"ab\"\nimage = \"b\"\nvolumes = [\"x\"]\n", 5, "volumes", "not a volume"),
        ("version = 1\nx = \n", 2, "x", ""),
    ];
    for (text, line, key, problem) in cases {
        let found = error(text);
        assert_eq!((found.line, found.key.as_str()), (*line, *key), "{text} gave {found}");
        assert!(found.problem.contains(problem), "{text} gave {found}");
        assert!(!found.remedy.is_empty());
    }
}

#[test]
fn two_units_of_one_name_are_refused() {
    let found = error("version = 1\n[[container]]\nname = \"ab\"\nimage = \"b\"\n[[container]]\nname = \"ab\"\nimage = \"c\"\n");
    assert_eq!(found.line, 5);
    assert!(found.problem.contains("two containers named `ab`"), "{found}");
}

#[test]
fn the_error_reads_as_one_sentence() {
    let text = error("version = 1\nhots = 1\n").to_string();
    assert!(text.starts_with("machine.toml:2: key `hots`: unknown field `hots`"), "{text}");
}
