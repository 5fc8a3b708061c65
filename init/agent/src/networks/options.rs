//! A network's driver and its options, read out of Docker's strings.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use berth_net::direct::{Ipvlan, Kind, Macvlan};

const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const MTU: &str = "com.docker.network.driver.mtu";
const ICC: &str = "com.docker.network.bridge.enable_icc";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
const PREFIX: &str = "com.docker.network.container_iface_prefix";
const GATEWAY_MODES: [&str; 2] =
    ["com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6"];

/// Ethernet's: every uplink carries it.
const MTU_BYTES: u32 = 1500;
/// Smallest MTU of IPv4 (RFC 791) and largest of the kernel's Ethernet-like interfaces, in bytes.
const MTU_LEGAL: std::ops::RangeInclusive<u32> = 68..=65535;
/// Longest interface name in bytes.
const NAME_BYTES: usize = 15;
/// Longest prefix of interface names inside, which get a number appended, in bytes.
const PREFIX_BYTES: usize = 11;

/// What the options say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// How containers are connected.
    pub(super) driver: Driver,
    /// Largest packet in bytes, when asked for.
    mtu: Option<u32>,
    /// What interfaces inside are called, before their number.
    pub(super) prefix: String,
}

/// How containers are connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Driver {
    /// To a bridge of their own.
    Bridge(BridgeSettings),
    /// To the network of an interface of the machine.
    Direct {
        /// That interface.
        parent: String,
        /// How.
        kind: Kind,
    },
}

/// What a bridge network does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BridgeSettings {
    /// Its interface, when asked for.
    pub(super) name: Option<String>,
    /// Containers reach each other.
    pub(super) icc: bool,
    /// Packets leave with the machine's address.
    pub(super) masquerade: bool,
    /// Where ports are published unless told otherwise; none for every address.
    pub(super) host_binding: Option<Ipv4Addr>,
}

/// Options that cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum OptionError {
    /// There is no such driver.
    #[error("plugin \"{0}\" not found")]
    Driver(String),
    /// A value that is none.
    #[error("invalid value {value:?} of network option {option}")]
    Value {
        /// The option.
        option: String,
        /// Its value.
        value: String,
    },
    /// macvlan and ipvlan need an interface.
    #[error("a {0} network needs an interface of the machine: -o parent=NAME")]
    NoParent(String),
    /// A mode that is not offered.
    #[error("network option {option}={value} is not offered")]
    NotOffered {
        /// The option.
        option: String,
        /// Its value.
        value: String,
    },
}

impl Settings {
    /// Reads them. Options nobody knows are kept for inspect and change nothing, as in Docker.
    pub(super) fn of(driver: &str, options: &BTreeMap<String, String>) -> Result<Settings, OptionError> {
        let get = |option: &str| options.get(option).map(String::as_str).filter(|value| !value.is_empty());
        let wrong = |option: &str| OptionError::Value {
            option: option.to_owned(),
            value: get(option).unwrap_or_default().to_owned(),
        };
        let flag = |option: &str| match get(option) {
            None => Ok(true),
            Some(value) => boolean(value).ok_or_else(|| wrong(option)),
        };
        let mtu = match get(MTU) {
            None => None,
            Some(value) => {
                let bytes = value.parse().ok().filter(|bytes| *bytes == 0 || MTU_LEGAL.contains(bytes));
                Some(bytes.ok_or_else(|| wrong(MTU))?).filter(|bytes| *bytes != 0)
            }
        };
        let prefix = get(PREFIX).unwrap_or("eth");
        if !interface_name(prefix) || prefix.len() > PREFIX_BYTES {
            return Err(wrong(PREFIX));
        }
        let driver = match driver {
            "" | "default" | "bridge" => {
                for option in GATEWAY_MODES {
                    if let Some(value) = get(option).filter(|value| *value != "nat") {
                        let (option, value) = (option.to_owned(), value.to_owned());
                        return Err(OptionError::NotOffered { option, value });
                    }
                }
                let name = get(BRIDGE_NAME).map(str::to_owned);
                if !name.as_deref().is_none_or(interface_name) {
                    return Err(wrong(BRIDGE_NAME));
                }
                let binding = match get(BINDING) {
                    None => Ipv4Addr::UNSPECIFIED,
                    Some(value) => value.parse().map_err(|_| wrong(BINDING))?,
                };
                Driver::Bridge(BridgeSettings {
                    name,
                    icc: flag(ICC)?,
                    masquerade: flag(MASQUERADE)?,
                    host_binding: Some(binding).filter(|binding| !binding.is_unspecified()),
                })
            }
            "macvlan" | "ipvlan" => {
                let parent = get("parent").ok_or_else(|| OptionError::NoParent(driver.to_owned()))?;
                let kind = direct(driver, get).ok_or_else(|| wrong(&format!("{driver}_mode")))?;
                Driver::Direct { parent: parent.to_owned(), kind }
            }
            other => return Err(OptionError::Driver(other.to_owned())),
        };
        Ok(Settings { driver, mtu, prefix: prefix.to_owned() })
    }

    /// Largest packet on a bridge, in bytes.
    pub(super) fn bridge_mtu(&self) -> u32 {
        self.mtu.unwrap_or(MTU_BYTES)
    }

    /// Largest packet of an interface beside the machine's, in bytes; none for the machine's own.
    pub(super) fn direct_mtu(&self) -> Option<u32> {
        self.mtu
    }

    /// The bridge's settings, of a network that has one.
    pub(super) fn bridge(&self) -> Option<&BridgeSettings> {
        match &self.driver {
            Driver::Bridge(bridge) => Some(bridge),
            Driver::Direct { .. } => None,
        }
    }
}

fn direct<'a>(driver: &str, get: impl Fn(&str) -> Option<&'a str>) -> Option<Kind> {
    if driver == "macvlan" {
        return Some(Kind::Macvlan(match get("macvlan_mode").unwrap_or("bridge") {
            "bridge" => Macvlan::Bridge,
            "private" => Macvlan::Private,
            "vepa" => Macvlan::Vepa,
            "passthru" => Macvlan::Passthru,
            _ => return None,
        }));
    }
    Some(Kind::Ipvlan(match get("ipvlan_mode").unwrap_or("l2") {
        "l2" => Ipvlan::L2,
        "l3" => Ipvlan::L3,
        "l3s" => Ipvlan::L3s,
        _ => return None,
    }))
}

/// The words Docker's language takes for yes and no.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn interface_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= NAME_BYTES && !matches!(name, "." | "..") && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(driver: &str, options: &[(&str, &str)]) -> Result<Settings, String> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Settings::of(driver, &options).map_err(|error| error.to_string())
    }

    #[test]
    fn bridges_have_dockers_defaults_and_options() {
        let plain = settings("", &[]).unwrap();
        assert_eq!((plain.bridge_mtu(), plain.prefix.as_str()), (1500, "eth"));
        let bridge = plain.bridge().unwrap();
        assert!(bridge.icc && bridge.masquerade && bridge.name.is_none() && bridge.host_binding.is_none());
        let asked =
            [(ICC, "0"), (MASQUERADE, "false"), (BRIDGE_NAME, "br9"), (BINDING, "127.0.0.1"), (MTU, "1400")];
        let asked = settings("bridge", &asked).unwrap();
        let bridge = asked.bridge().unwrap();
        assert_eq!((asked.bridge_mtu(), bridge.name.as_deref()), (1400, Some("br9")));
        assert!(!bridge.icc && !bridge.masquerade);
        assert_eq!(bridge.host_binding, Some(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn values_that_are_none_are_refused_by_name() {
        for (option, value) in [
            (ICC, "perhaps"),
            (MTU, "12"),
            (MTU, "big"),
            (BINDING, "::1"),
            (BRIDGE_NAME, "a/b"),
            (BRIDGE_NAME, "a-very-long-name-it-is"),
            (PREFIX, "*"),
        ] {
            let error = settings("bridge", &[(option, value)]).unwrap_err();
            assert_eq!(error, format!("invalid value {value:?} of network option {option}"));
        }
        let routed = settings("bridge", &[(GATEWAY_MODES[0], "routed")]).unwrap_err();
        assert!(routed.contains("is not offered"), "{routed}");
        assert_eq!(settings("weave", &[]).unwrap_err(), "plugin \"weave\" not found");
    }

    #[test]
    fn direct_networks_name_an_interface_and_a_mode() {
        let kind = |driver: &str, options: &[(&str, &str)]| match settings(driver, options).unwrap().driver {
            Driver::Direct { kind, .. } => kind,
            Driver::Bridge(_) => panic!("{driver} is no bridge"),
        };
        let parent = ("parent", "eth0");
        assert_eq!(kind("macvlan", &[parent]), Kind::Macvlan(Macvlan::Bridge));
        assert_eq!(kind("macvlan", &[parent, ("macvlan_mode", "vepa")]), Kind::Macvlan(Macvlan::Vepa));
        assert_eq!(kind("ipvlan", &[parent, ("ipvlan_mode", "l3")]), Kind::Ipvlan(Ipvlan::L3));
        assert!(settings("ipvlan", &[parent, ("ipvlan_mode", "l4")]).is_err());
        assert!(settings("macvlan", &[]).unwrap_err().contains("-o parent="));
    }
}
