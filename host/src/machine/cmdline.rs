//! The kernel's command line: its default parameters, and how `--append` changes them.

use super::fleet::{Link, Root, name};

/// Longest command line that Linux accepts on RISC-V, in bytes. It cuts longer ones.
pub const LEN_MAX: usize = 1023;

/// Parameters that occur once: one in `--append` replaces those of its row. Linux itself uses the
/// last one of most of them, but the first `ip=`, and every `console=`.
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
/// Parameter with the VM's name, for the guest's init.
const HOST: &str = "pxvm.host";

/// Returns the command line of VM `vm`: the defaults or those of the user's device tree, without
/// what `append` replaces, followed by `append`.
///
/// All guests of a fleet have the same IPv4 address; the network translates it where they talk to
/// the outside.
pub fn bootargs(vm: u32, tree: Option<&str>, root: Root, link: Link, append: &str) -> String {
    let host = name(vm);
    // Words behind `--` are for the guest's init.
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

/// Returns the default command line of a VM with this name. A root file system other than the
/// default image's has its own type and init.
fn defaults(host: &str, root: Root, link: Link, other_root: bool) -> String {
    let root = match root {
        // A kernel that freed the initrd would write to it, and each VM would get its own copy.
        Root::Initrd => "retain_initrd",
        Root::Rom if other_root => "",
        Root::Rom => "root=mtd0 rootfstype=cramfs ro init=/init",
        Root::Unknown => return "console=ttyS0".into(),
    };
    let ip = match link {
        Link::Up => format!("ip=10.0.2.15::10.0.2.2:255.255.255.0:{host}:eth0:off"),
        // A kernel with an IPv4 address waits two minutes for the link to come up.
        Link::Down => String::new(),
    };
    format!("console=ttyS0 quiet {root} {ip} panic=1 {HOST}={host}")
}

/// Whether a parameter with the second name replaces one with the first.
fn alike(one: &str, other: &str) -> bool {
    ROWS.iter().any(|row| row.contains(&one) && row.contains(&other))
}

/// Returns the name of the parameter that a word sets.
fn key(word: &str) -> &str {
    word.split_once('=').map_or(word, |(name, _)| name)
}

/// Returns the words of a command line as Linux separates them: by white space outside of quotes.
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
        // Not parameters of the kernel, or different ones.
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
    fn an_unknown_guest_gets_a_console_and_nothing_else() {
        let line = |append| bootargs(3, None, Root::Unknown, Link::Up, append);
        assert_eq!(line(""), "console=ttyS0");
        assert_eq!(line("debug console=hvc0"), "debug console=hvc0");
    }

    #[test]
    fn without_a_network_nobody_waits_for_it() {
        let line = bootargs(3, None, Root::Initrd, Link::Down, "");
        assert_eq!(line, "console=ttyS0 quiet retain_initrd panic=1 pxvm.host=vm3");
    }
}
