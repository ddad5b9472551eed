//! What PTX text must and must not contain.

use std::collections::HashSet;

/// Returns everything that is wrong with a PTX text that has these entry points, as sentences for
/// people.
pub fn problems(text: &str, entries: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    if !text.lines().any(|l| l.starts_with(".target") && !l.contains("debug")) {
        found.push("no `.target` without `debug`: it would be compiled unoptimised".to_owned());
    }
    for line in text.lines().map(str::trim) {
        if line.contains(".extern .func") {
            found.push(format!("a function that does not exist: `{line}`"));
        }
        // Atomic accesses to a thread's local memory make no sense. If there are some, LLVM has
        // inferred a wrong address space.
        if line.contains("atom") && line.contains(".local") {
            found.push(format!("an atomic on local memory: `{line}`"));
        }
    }
    found.extend(
        twins(text)
            .map(|line| format!("two votes or shuffles made of one, on two paths: `{line}`")),
    );
    if text.matches(".entry ").count() != entries.len() {
        found.push("another number of entry points than there should be".to_owned());
    }
    for entry in entries {
        if !text.contains(&format!(".visible .entry {entry}(")) {
            found.push(format!("no entry point {entry}"));
        }
    }
    found
}

/// Finds votes and shuffles that the compiler has duplicated: two that write the same register,
/// which stand on two sides of a branch. If lanes diverge there, each executes one of the two, and
/// does not wait for the others.
fn twins(text: &str) -> impl Iterator<Item = &str> {
    let mut seen = HashSet::new();
    text.lines().map(str::trim).filter(move |line| {
        if line.contains(".entry ") || line.contains(".func ") {
            seen.clear();
        }
        let collective = line.starts_with("vote.sync") || line.starts_with("shfl.sync");
        let register = line.split_whitespace().nth(1).filter(|_| collective);
        register.is_some_and(|register| !seen.insert(register))
    })
}

/// Finds calls of panicking functions, which the optimiser could not prove unreachable. A panic
/// ends the whole launch instead of one VM, so there must be none.
pub fn traps(text: &str) -> usize {
    text.lines().filter(|l| l.trim_start().starts_with("trap;")).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ENTRIES;

    fn good() -> String {
        let entries = ENTRIES.map(|e| format!(".visible .entry {e}(\n)\n{{ ret; }}\n"));
        format!(".version 7.8\n.target sm_75\n{}", entries.concat())
    }

    #[test]
    fn what_the_builder_makes_is_accepted() {
        assert_eq!(problems(&good(), &ENTRIES), Vec::<String>::new());
    }

    #[test]
    fn every_fault_is_named() {
        let bad =
            |from: &str, to: &str| problems(&good().replacen(from, to, 1), &ENTRIES).join("\n");
        assert!(bad("sm_75", "sm_75, debug").contains("unoptimised"));
        assert!(bad("ret;", ".extern .func memcpy").contains("memcpy"));
        assert!(bad("ret;", "atom.local.add.u32 r, [a], 1;").contains("atomic"));
        assert!(bad("pxvm_step", "other").contains("pxvm_step"));
        let vote = "\nvote.sync.ballot.b32 %r1, %p1, %r2;\n";
        assert!(bad("ret;", &format!("{vote}@%p1 bra $L;\n{vote}$L: ret;")).contains("two votes"));
        let another = vote.replace("%r1,", "%r3,");
        assert_eq!(bad("ret;", &format!("{vote}{another}ret;")), "");
    }
}
