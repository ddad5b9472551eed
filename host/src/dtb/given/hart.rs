//! The hart of a given tree: one, with the instructions, address translation and timer of the
//! machine's.

use super::super::{Shape, cells, emit, strings};
use super::misfit::{Misfits, Repair};
use super::node::{Node, is_compatible, is_enabled, number, text, value};

/// Extensions that every hart with [`emit::EXTENSIONS`] has: parts of them, hints, counters that
/// may stand still, and the privilege modes, which old trees name here.
const IMPLIED: [&str; 8] =
    ["s", "u", "zaamo", "zalrsc", "zihintntl", "zihintpause", "zihpm", "zmmul"];
/// Largest number of extensions that a message names.
const NAMED_MAX: usize = 8;

/// Checks the harts. Returns the phandle of the first one's interrupt controller, if it has one.
pub fn check(cpus: Node<'_, '_>, shape: &Shape, misfits: &mut Misfits) -> Option<u32> {
    let is_hart = |node: &Node<'_, '_>| {
        is_enabled(*node) && is_compatible(*node, |name| name.contains("riscv"))
    };
    let mut harts: Vec<Node<'_, '_>> = cpus.children().filter(is_hart).collect();
    if harts.is_empty() {
        misfits.add("/cpus", "it has no RISC-V cpu", Repair::Impossible);
        return None;
    }
    let number_0 = harts.iter().position(|hart| value(*hart, "reg") == Some(0));
    let hart = harts.remove(number_0.unwrap_or(0));
    let path = format!("/cpus/{}", hart.name);
    if number_0.is_none() {
        let repair = Repair::Set("reg", cells(&[0]));
        misfits.add(&path, "the machine's only hart has the number 0", repair);
    }
    for other in harts {
        let repair = Repair::Set("status", strings(&["disabled"]));
        misfits.add(format!("/cpus/{}", other.name), "the machine has one hart only", repair);
    }
    check_timebase(cpus, hart, shape, misfits);
    check_isa(hart, &path, misfits);
    let mmu = text(hart, "mmu-type");
    if !["", "riscv,none", emit::MMU].contains(&mmu) {
        let repair = Repair::Set("mmu-type", strings(&[emit::MMU]));
        let mmu = mmu.escape_debug();
        misfits.add(&path, format!("its mmu-type is {mmu}, the machine's {}", emit::MMU), repair);
    }
    let controller = hart.children().find(|n| n.property("interrupt-controller").is_some())?;
    let phandle = value(controller, "phandle").or_else(|| value(controller, "linux,phandle"))?;
    u32::try_from(phandle).ok()
}

/// Checks the frequency of `time`, which stands at all harts or at this one.
fn check_timebase(cpus: Node<'_, '_>, hart: Node<'_, '_>, shape: &Shape, misfits: &mut Misfits) {
    const NAME: &str = "timebase-frequency";
    let ours = shape.kind.map().timebase;
    let repair = || Repair::Set(NAME, cells(&[ours]));
    let places = [("/cpus".to_owned(), cpus), (format!("/cpus/{}", hart.name), hart)];
    let given = places.map(|(path, node)| Some((path, node.property(NAME)?)));
    if given.iter().all(Option::is_none) {
        misfits.add("/cpus", format!("it has no {NAME}; the machine's is {ours} Hz"), repair());
    }
    for (path, property) in given.into_iter().flatten() {
        let theirs = number(property.value);
        if theirs != Some(ours.into()) {
            let theirs = theirs.map_or("no number".to_owned(), |hz| format!("{hz} Hz"));
            misfits.add(
                path,
                format!("its timebase is {theirs}, the machine's {ours} Hz"),
                repair(),
            );
        }
    }
}

/// Checks that the hart has no instructions that the machine lacks.
fn check_isa(hart: Node<'_, '_>, path: &str, misfits: &mut Misfits) {
    let isa = text(hart, "riscv,isa").to_ascii_lowercase();
    let base = text(hart, "riscv,isa-base");
    let ours = [("riscv,isa", emit::ISA), ("riscv,isa-base", emit::ISA_BASE)];
    for ((name, ours), given) in ours.into_iter().zip([isa.as_str(), base]) {
        if !given.is_empty() && !given.starts_with(emit::ISA_BASE) {
            let given: String = given.chars().take(5).flat_map(char::escape_debug).collect();
            let repair = Repair::Set(name, strings(&[ours]));
            misfits.add(path, format!("its {name} is {given}, the machine's {ours}"), repair);
        }
    }
    let lacking = lacking(extensions(&isa));
    if isa.starts_with(emit::ISA_BASE) && !lacking.is_empty() {
        let repair = Repair::Set("riscv,isa", strings(&[emit::ISA]));
        misfits.add(
            path,
            format!("its riscv,isa has {lacking}; the machine is {}", emit::ISA),
            repair,
        );
    }
    let listed = hart.property("riscv,isa-extensions").map_or(&[][..], |property| property.value);
    let listed = String::from_utf8_lossy(listed).to_ascii_lowercase();
    let lacking = self::lacking(listed.split('\0').collect());
    if !lacking.is_empty() {
        let repair = Repair::Set("riscv,isa-extensions", strings(&emit::EXTENSIONS));
        misfits.add(
            path,
            format!("its riscv,isa-extensions have {lacking}, which the machine lacks"),
            repair,
        );
    }
}

/// Returns the extensions in a string such as `rv32imac_zicsr_sstc`.
fn extensions(isa: &str) -> Vec<&str> {
    let mut parts = isa.split('_');
    let letters = parts.next().and_then(|first| first.get(4..)).unwrap_or_default();
    // The first name of several letters may follow without an underscore. Old trees end with "su",
    // the privilege modes.
    let is_long = |&(at, letter): &(usize, char)| {
        matches!(letter, 's' | 'x' | 'z') && !["s", "su"].contains(&&letters[at..])
    };
    let long = letters.char_indices().find(is_long).map_or(letters.len(), |(at, _)| at);
    let (letters, long) = letters.split_at(long);
    letters.split_inclusive(|_| true).chain([long]).chain(parts).collect()
}

/// Returns those extensions that the machine lacks, as words of a sentence.
fn lacking(mut extensions: Vec<&str>) -> String {
    extensions.retain(|name| {
        !name.is_empty() && !emit::EXTENSIONS.contains(name) && !IMPLIED.contains(name)
    });
    let more = extensions.len().saturating_sub(NAMED_MAX);
    extensions.truncate(NAMED_MAX);
    let named = extensions.join(", ").escape_debug().to_string();
    if more > 0 { format!("{named} and {more} more") } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_is_named() {
        let lacking = |isa| lacking(extensions(isa));
        for isa in ["rv32ima", "rv32im", "rv32imazicsr_zifencei", "rv32ima_zmmul", "rv32imasu", ""]
        {
            assert_eq!(lacking(isa), "", "{isa}");
        }
        assert_eq!(lacking("rv32imafdcsu"), "f, d, c");
        assert_eq!(lacking("rv32g"), "g");
        assert_eq!(lacking("rv32imasstc"), "sstc");
        assert_eq!(lacking("rv64imac_zicsr_zba_sstc_xventana"), "c, zba, sstc, xventana");
        assert_eq!(lacking("rv32imabcdefghjk"), "b, c, d, e, f, g, h, j and 1 more");
        assert_eq!(lacking("rv32\u{e4}\u{f6}"), "\u{e4}, \u{f6}");
    }
}
