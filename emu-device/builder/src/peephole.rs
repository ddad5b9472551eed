//! Removes useless instructions that LLVM leaves in the PTX.

/// Drops branches on `x & mask > mask`, which are never taken: range checks of jump tables whose
/// index was masked. LLVM keeps them because its NVPTX back end replaces the `unreachable` behind
/// them by an `exit`.
pub fn drop_dead_branches(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::with_capacity(text.len());
    for (at, line) in lines.iter().enumerate() {
        let dead = at >= 2 && never_taken(lines[at - 2], lines[at - 1], line);
        if !dead {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Returns whether `branch` depends on `test`, which compares what `and` has just masked.
fn never_taken(and: &str, test: &str, branch: &str) -> bool {
    let operands = |line: &str, mnemonic: &str| -> Option<Vec<String>> {
        let rest = line.trim().strip_prefix(mnemonic)?.strip_suffix(';')?;
        Some(rest.split(',').map(|o| o.trim().to_owned()).collect())
    };
    let (Some(and), Some(test)) = (operands(and, "and.b32"), operands(test, "setp.gt.u32")) else {
        return false;
    };
    let [masked, _, mask] = &and[..] else { return false };
    let [predicate, value, bound] = &test[..] else { return false };
    let branches = branch.trim().strip_prefix(&format!("@{predicate} bra")).is_some();
    branches && value == masked && bound == mask && mask.parse::<u32>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AND: &str = "\tand.b32 \t%r1, %r2, 63;\n";
    const TEST: &str = "\tsetp.gt.u32 \t%p1, %r1, 63;\n";
    const BRANCH: &str = "\t@%p1 bra \t$L1;\n";

    #[test]
    fn a_range_check_behind_its_mask_goes() {
        let text = format!("{AND}{TEST}{BRANCH}\tret;\n");
        assert_eq!(drop_dead_branches(&text), format!("{AND}{TEST}\tret;\n"));
    }

    #[test]
    fn every_other_branch_stays() {
        for text in [
            format!("{AND}{}{BRANCH}", TEST.replace("63", "62")),
            format!("{AND}{}{BRANCH}", TEST.replace("%r1", "%r2")),
            format!("{AND}{}{BRANCH}", TEST.replace("gt", "ge")),
            format!("{AND}{TEST}{}", BRANCH.replace("@", "@!")),
            format!("{AND}{TEST}{}", BRANCH.replace("%p1", "%p2")),
            format!("{}{TEST}{BRANCH}", AND.replace("63", "%r3")),
            format!("{}{TEST}{BRANCH}", AND.replace("and", "or")),
            format!("{AND}\n{TEST}{BRANCH}"),
        ] {
            assert_eq!(drop_dead_branches(&text), text);
        }
    }
}
