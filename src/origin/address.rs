//! Classification of IP addresses (RFC 6890 and its registries). Only public addresses may be
//! dialled without an entry in `egress.allow`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::policy::Egress;
use crate::sockets::is_local;

/// Class of an IP address. Every address belongs to exactly one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressClass {
    /// Globally routable unicast address that may always be dialled.
    Public,
    /// Loopback address: 127.0.0.0/8 or ::1.
    Loopback,
    /// Address of a private network: 10/8, 172.16/12, 192.168/16, fc00::/7 or fec0::/10.
    Private,
    /// Link-local address: 169.254/16 or fe80::/10. Cloud metadata services use this range.
    LinkLocal,
    /// Address outside the reserved ranges by which a cloud platform serves its virtual machines:
    /// 168.63.129.16 (Azure).
    CloudPlatform,
    /// Shared address of carrier-grade NAT: 100.64/10 (RFC 6598).
    SharedCarrier,
    /// Multicast address: 224/4 or ff00::/8.
    Multicast,
    /// Unspecified address: 0/8 or ::.
    Unspecified,
    /// Reserved block: 240/4 with broadcast, documentation, benchmarking and protocol assignments.
    Reserved,
    /// IPv6 form that carries an IPv4 address: mapped, NAT64, 6to4, Teredo or ISATAP.
    Embedded,
}

impl AddressClass {
    /// Classifies an address. An IPv4-mapped address has the class of its IPv4 address. A public
    /// IPv4 address in this form is [`Self::Embedded`], because a public host has no reason to use
    /// it.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => of_v4(ip),
            IpAddr::V6(ip) => of_v6(ip),
        }
    }
}

fn of_v4(ip: Ipv4Addr) -> AddressClass {
    if ip == Ipv4Addr::new(168, 63, 129, 16) {
        return AddressClass::CloudPlatform;
    }
    let [a, b, c, _] = ip.octets();
    match (a, b, c) {
        (0, _, _) => AddressClass::Unspecified,
        (127, _, _) => AddressClass::Loopback,
        (10, _, _) | (172, 16..=31, _) | (192, 168, _) => AddressClass::Private,
        (169, 254, _) => AddressClass::LinkLocal,
        (100, 64..=127, _) => AddressClass::SharedCarrier,
        (224..=239, _, _) => AddressClass::Multicast,
        (240..=255, _, _)
        | (192, 0, 0 | 2)
        | (192, 88, 99)
        | (198, 18 | 19, _)
        | (198, 51, 100)
        | (203, 0, 113) => AddressClass::Reserved,
        _ => AddressClass::Public,
    }
}

fn of_v6(ip: Ipv6Addr) -> AddressClass {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return match of_v4(v4) {
            AddressClass::Public => AddressClass::Embedded,
            class => class,
        };
    }
    let segments = ip.segments();
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => AddressClass::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => AddressClass::Loopback,
        // IPv4-compatible, NAT64 (well-known and local), 6to4, Teredo, ISATAP.
        [0, 0, 0, 0, 0, 0, ..]
        | [0x64, 0xff9b, ..]
        | [0x2002, ..]
        | [0x2001, 0, ..]
        | [_, _, _, _, 0 | 0x200, 0x5efe, ..] => AddressClass::Embedded,
        [first, ..] if first & 0xfe00 == 0xfc00 => AddressClass::Private,
        [first, ..] if first & 0xffc0 == 0xfe80 => AddressClass::LinkLocal,
        [first, ..] if first & 0xffc0 == 0xfec0 => AddressClass::Private,
        [first, ..] if first & 0xff00 == 0xff00 => AddressClass::Multicast,
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => AddressClass::Reserved,
        [0x2001, second, ..] if second < 0x200 => AddressClass::Reserved,
        // Only 2000::/3 is allocated as global unicast.
        [first, ..] if first & 0xe000 == 0x2000 => AddressClass::Public,
        _ => AddressClass::Reserved,
    }
}

/// Returns true if an address may be dialled: the operator allows it, or it is public and does not
/// belong to this machine.
pub fn may_dial(egress: &Egress, address: SocketAddr) -> bool {
    let ip = address.ip();
    egress.allows(address)
        || egress.private && !may_be_metadata(ip)
        || AddressClass::of(ip) == AddressClass::Public && !is_local(ip)
}

/// Returns true if an address may serve the metadata of a virtual machine, with its credentials, or if
/// it is no address of a single host. The command of `outpace run` reaches all others.
fn may_be_metadata(ip: IpAddr) -> bool {
    let known = [
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
        IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
        IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    ];
    let class = AddressClass::of(ip);
    known.contains(&ip.to_canonical())
        || matches!(
            class,
            AddressClass::LinkLocal
                | AddressClass::CloudPlatform
                | AddressClass::Embedded
                | AddressClass::Multicast
                | AddressClass::Unspecified
        )
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Loopback => "a loopback address",
            Self::Private => "a private address",
            Self::LinkLocal => "a link-local address",
            Self::CloudPlatform => "an address of the cloud platform",
            Self::SharedCarrier => "a carrier-grade NAT address",
            Self::Multicast => "a multicast address",
            Self::Unspecified => "an unspecified address",
            Self::Reserved => "a reserved address",
            Self::Embedded => "an IPv4 address inside an IPv6 address",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p10_closed_no_command_reaches_the_metadata_of_its_machine() {
        for text in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "168.63.129.16",
            "fd00:ec2::254",
            "100.100.100.200",
            "::ffff:100.100.100.200",
            "192.0.0.192",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::",
            "0.0.0.0",
            "::",
            "224.0.0.1",
        ] {
            assert!(may_be_metadata(text.parse().unwrap()), "{text}");
        }
        for text in [
            "127.0.0.1",
            "::1",
            "10.1.2.3",
            "192.168.1.1",
            "100.64.0.1",
            "198.18.0.1",
            "fd00::1",
            "93.184.216.34",
        ] {
            assert!(!may_be_metadata(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn p10_closed_every_class_is_known() {
        for (text, class) in [
            ("93.184.216.34", AddressClass::Public),
            ("2606:2800:220:1::1", AddressClass::Public),
            ("127.0.0.1", AddressClass::Loopback),
            ("::1", AddressClass::Loopback),
            ("::ffff:127.0.0.1", AddressClass::Loopback),
            ("10.1.2.3", AddressClass::Private),
            ("172.31.0.1", AddressClass::Private),
            ("172.32.0.1", AddressClass::Public),
            ("192.168.0.1", AddressClass::Private),
            ("fd00::1", AddressClass::Private),
            ("fec0::1", AddressClass::Private),
            ("169.254.169.254", AddressClass::LinkLocal),
            ("::ffff:169.254.169.254", AddressClass::LinkLocal),
            ("fe80::1", AddressClass::LinkLocal),
            ("168.63.129.16", AddressClass::CloudPlatform),
            ("::ffff:168.63.129.16", AddressClass::CloudPlatform),
            ("64:ff9b::a83f:8110", AddressClass::Embedded),
            ("168.63.129.15", AddressClass::Public),
            ("168.63.129.17", AddressClass::Public),
            ("168.63.130.16", AddressClass::Public),
            ("100.64.0.1", AddressClass::SharedCarrier),
            ("100.100.100.200", AddressClass::SharedCarrier),
            ("192.0.0.192", AddressClass::Reserved),
            ("fd00:ec2::254", AddressClass::Private),
            ("224.0.0.1", AddressClass::Multicast),
            ("ff02::1", AddressClass::Multicast),
            ("0.0.0.0", AddressClass::Unspecified),
            ("::", AddressClass::Unspecified),
            ("255.255.255.255", AddressClass::Reserved),
            ("192.0.2.1", AddressClass::Reserved),
            ("198.18.0.1", AddressClass::Reserved),
            ("2001:db8::1", AddressClass::Reserved),
            ("::ffff:8.8.8.8", AddressClass::Embedded),
            ("64:ff9b::7f00:1", AddressClass::Embedded),
            ("2002:7f00:1::", AddressClass::Embedded),
            ("2001:0:1::1", AddressClass::Embedded),
            ("::7f00:1", AddressClass::Embedded),
            ("2001:4860:4860:0:0:5efe:7f00:1", AddressClass::Embedded),
        ] {
            assert_eq!(AddressClass::of(text.parse().unwrap()), class, "{text}");
        }
    }
}
