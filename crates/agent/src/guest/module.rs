//! Kernel modules: what each needs, and the order in which they can be loaded.

use std::collections::{BTreeMap, HashSet};

/// What a machine's own devices and disks need, then what programs in a task may want of a kernel
/// that is theirs alone: there is no loading of modules later.
pub(super) const WANTED_MODULES: [&str; 66] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "crc32c_intel",
    "erofs",
    "ext4",
    "overlay",
    // File systems: FUSE, images, Docker's and Podman's own.
    "fuse",
    "loop",
    "squashfs",
    "binfmt_misc",
    // Networks of containers within: links, bridges, tunnels, shaping.
    "tun",
    "veth",
    "dummy",
    "bridge",
    "br_netfilter",
    "macvlan",
    "ipvlan",
    "vxlan",
    "wireguard",
    "sch_htb",
    "sch_ingress",
    // nftables.
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_chain_nat",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_fib_inet",
    "nft_limit",
    "nft_log",
    "nft_hash",
    "nft_numgen",
    "nft_objref",
    "nft_quota",
    // iptables, in both of its forms.
    "nft_compat",
    "ip_tables",
    "iptable_filter",
    "iptable_nat",
    "iptable_mangle",
    "iptable_raw",
    "ip6_tables",
    "ip6table_filter",
    "ip6table_nat",
    "ip6table_mangle",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_limit",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_multiport",
    "xt_nat",
    "xt_owner",
    "xt_REDIRECT",
    "xt_tcpudp",
    "xt_statistic",
];

/// A module's own name for itself: hyphens of the file name are underscores (kmod, `modname_normalize`).
pub(super) fn name_of_file(file: &str) -> String {
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

/// The modules that a module says it needs (`depends=` in the section `.modinfo`; modinfo(8)).
///
/// # Errors
/// It is not an ELF file for x86-64, or has no such section; why.
pub(super) fn needs(module: &[u8]) -> Result<Vec<String>, &'static str> {
    let info = section(module, b".modinfo").ok_or("not a kernel module")?;
    let depends = info.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"depends="));
    let depends =
        str::from_utf8(depends.unwrap_or_default()).map_err(|_| "needs modules with strange names")?;
    Ok(depends.split(',').filter(|name| !name.is_empty()).map(name_of_file).collect())
}

/// A section's bytes (System V ABI, "Sections"; 64 bit, little endian).
fn section<'a>(file: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<usize> {
        let field: [u8; N] = bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()?;
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&field);
        usize::try_from(u64::from_le_bytes(wide)).ok()
    }
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    const HEADER: usize = 64;
    let (table, size) = (number::<8>(file, 40)?, number::<2>(file, 58)?);
    let (count, names) = (number::<2>(file, 60)?, number::<2>(file, 62)?);
    if size != HEADER {
        return None;
    }
    let header = |index: usize| {
        let start = table.checked_add(index.checked_mul(HEADER)?)?;
        file.get(start..start.checked_add(HEADER)?)
    };
    let content = |header: &[u8]| {
        let start = number::<8>(header, 24)?;
        file.get(start..start.checked_add(number::<8>(header, 32)?)?)
    };
    let names = content(header(names)?)?;
    (0..count).filter_map(header).find_map(|header| {
        let own_name = names.get(number::<4>(header, 0)?..)?.split(|byte| *byte == 0).next()?;
        if own_name == name { content(header) } else { None }
    })
}

/// The wanted modules and all that they need, each behind what it needs. What is not in `needs` is
/// left out: the kernel has it built in, or has it not.
pub(super) fn load_order(needs: &BTreeMap<String, Vec<String>>, wanted: &[&str]) -> Vec<String> {
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    // (module, whether what it needs was added already), the next one last.
    let mut stack: Vec<(&str, bool)> = wanted.iter().rev().map(|name| (*name, false)).collect();
    while let Some((name, ready)) = stack.pop() {
        if ready {
            order.push(name.to_owned());
            continue;
        }
        let Some(own) = needs.get(name) else { continue };
        if seen.insert(name) {
            stack.push((name, true));
            stack.extend(own.iter().rev().map(|need| (need.as_str(), false)));
        }
    }
    order
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A module with nothing but what is read here.
    pub(in super::super) fn module(depends: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0name=x\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[18] = 62;
        let info_at = file.len();
        file.extend(info.as_bytes());
        let names_at = file.len();
        file.extend(names);
        let table = file.len();
        file[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        file[58] = 64;
        file[60] = 3;
        file[62] = 2;
        for (name, offset, length) in [(0, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())] {
            let mut header = [0; 64];
            header[0] = name;
            header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(length as u64).to_le_bytes());
            file.extend(header);
        }
        file
    }

    #[test]
    fn needs_are_read_from_the_module() {
        assert_eq!(needs(&module("")).unwrap(), Vec::<String>::new());
        assert_eq!(needs(&module("virtio,virtio-ring")).unwrap(), ["virtio", "virtio_ring"]);
    }

    #[test]
    fn what_is_no_module_is_refused_wherever_it_is_cut() {
        let whole = module("virtio");
        for length in 0..whole.len() {
            assert!(needs(&whole[..length]).is_err(), "{length}");
        }
        let mut wild = whole.clone();
        wild[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(needs(&wild).is_err());
    }

    #[test]
    fn each_comes_behind_what_it_needs() {
        let graph =
            [("a", vec!["b", "c"]), ("b", vec!["c"]), ("c", vec![]), ("d", vec!["e"]), ("e", vec!["d"])];
        let graph: BTreeMap<String, Vec<String>> = graph
            .into_iter()
            .map(|(name, needs)| (name.to_owned(), needs.into_iter().map(str::to_owned).collect()))
            .collect();
        assert_eq!(load_order(&graph, &["a", "built_in", "c"]), ["c", "b", "a"]);
        // A circle, which no kernel has, is no reason to hang.
        assert_eq!(load_order(&graph, &["d"]), ["e", "d"]);
    }

    #[test]
    fn names_are_those_of_the_kernel() {
        assert_eq!(name_of_file("virtio-rng.ko.xz"), "virtio_rng");
        assert_eq!(name_of_file("erofs.ko"), "erofs");
    }
}
