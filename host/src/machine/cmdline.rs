//! The kernel's command line: what it says by default, and how `--append` changes that.

use super::fleet::{Link, Root, name};

/// Longest command line that Linux takes on RISC-V, in bytes. It cuts what is longer.
pub const LEN_MAX: usize = 1023;

/// Parameters that are not repeated: one in `--append` replaces those of its row. Linux itself takes
/// the last of most of them, but the first `ip=`, and all consoles.
const ROWS: [&[&str]; 9] = [
    &["console"],
    &["quiet", "debug", "loglevel"],
    &["root"],
    &["rootfstype"],
    &["ro", "rw"],
    &["init"],
    &["ip", "nfsaddrs"],
    &["panic"],
    &[HOST],
];
/// A VM's name, for the guest's init.
const HOST: &str = "pxvm.host";

/// The command line of VM `vm`: the defaults or those of a given tree, without what `append`
/// replaces, and then `append`.
///
/// All guests of a fleet have the same address; who talks to the outside rewrites it there.
pub fn bootargs(vm: u32, tree: Option<&str>, root: Root, link: Link, append: &str) -> String {
    let host = name(vm);
    // What follows `--` is for the guest's init.
    let added: Vec<&str> = words(append).take_while(|word| *word != "--").collect();
    let replaced = |key: &str| added.iter().any(|word| alike(key, self::key(word)));
    let line = match tree {
        Some(given) => given.to_owned(),
        None => defaults(&host, root, link, replaced("root")),
    };
    let kept = words(&line).filter(|word| !replaced(key(word))).map(|word| match key(word) {
        HOST => format!("{HOST}={host}"),
        _ => word.to_owned(),
    });
    let append = Some(append.trim()).filter(|append| !append.is_empty());
    kept.chain(append.map(str::to_owned)).collect::<Vec<_>>().join(" ")
}

/// The command line of a VM with this name, when nobody says more. Another root than ours has its
/// own type and init.
fn defaults(host: &str, root: Root, link: Link, other_root: bool) -> String {
    let root = match root {
        // A kernel that freed the initrd would write to it: each VM had its own copy then.
        Root::Initrd => "retain_initrd",
        Root::Rom if other_root => "",
        Root::Rom => "root=mtd0 rootfstype=cramfs ro init=/init",
    };
    let ip = match link {
        Link::Up => format!("ip=10.0.2.15::10.0.2.2:255.255.255.0:{host}:eth0:off"),
        // A kernel that is given an address waits two minutes for the link.
        Link::Down => String::new(),
    };
    format!("console=ttyS0 quiet {root} {ip} panic=1 {HOST}={host}")
}

/// Whether a parameter of the second name replaces one of the first.
fn alike(one: &str, other: &str) -> bool {
    ROWS.iter().any(|row| row.contains(&one) && row.contains(&other))
}

/// The name of the parameter that a word sets.
fn key(word: &str) -> &str {
    word.split_once('=').map_or(word, |(name, _)| name)
}

/// The words of a command line as Linux separates them: by white space that is not in quotes.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let gap = move |c: char| {
        quoted ^= c == '"';
        !quoted && c.is_ascii_whitespace()
    };
    line.split(gap).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rom(append: &str) -> String {
        bootargs(3, None, Root::Rom, Link::Up, append)
    }

    #[test]
    fn the_defaults_name_the_host_and_what_is_appended_comes_last() {
        assert_eq!(
            rom("debug2  \"a b\" "),
            "console=ttyS0 quiet root=mtd0 rootfstype=cramfs ro init=/init \
             ip=10.0.2.15::10.0.2.2:255.255.255.0:vm3:eth0:off panic=1 pxvm.host=vm3 \
             debug2  \"a b\""
        );
    }

    #[test]
    fn what_is_appended_replaces_the_default() {
        for (append, gone, left) in [
            ("ip=dhcp", "ip=10", "panic=1"),
            ("nfsaddrs=off", "ip=10", "panic=1"),
            ("console=hvc0", "console=ttyS0", "quiet"),
            ("loglevel=8", "quiet", "console=ttyS0"),
            ("panic=0", "panic=1", "quiet"),
            ("rw", " ro ", "root=mtd0"),
            ("init=/bin/sh", "init=/init", "root=mtd0 rootfstype=cramfs ro"),
            ("root=/dev/vda", "cramfs", "console=ttyS0"),
            ("root=/dev/vda", "init=", "console=ttyS0"),
            ("pxvm.host=me", "vm3 ", "ip="),
        ] {
            let line = rom(append);
            assert!(!line.contains(gone) && line.contains(left), "{append}: {line}");
            assert!(line.ends_with(&format!(" {append}")), "{line}");
        }
        // Not parameters of the kernel, or others.
        for append in ["-- ip=dhcp", "x=\"a ip=dhcp b\"", "ipx=1", "rootwait"] {
            assert_eq!(rom(append), format!("{} {append}", rom("")));
        }
    }

    #[test]
    fn a_given_line_is_kept_but_for_what_is_appended_and_the_name() {
        let given = |line, append| bootargs(3, Some(line), Root::Initrd, Link::Up, append);
        let line = "earlycon console=ttyS0 pxvm.host=vm0 root=/dev/vda init=/x ip=off";
        let named = line.replace("vm0", "vm3");
        assert_eq!(given(line, ""), named);
        assert_eq!(given(line, "ip=dhcp"), named.replace("ip=off", "ip=dhcp"));
        assert_eq!(given("", "debug"), "debug");
    }

    #[test]
    fn without_a_network_nobody_waits_for_it() {
        let line = bootargs(3, None, Root::Initrd, Link::Down, "");
        assert_eq!(line, "console=ttyS0 quiet retain_initrd panic=1 pxvm.host=vm3");
    }
}
