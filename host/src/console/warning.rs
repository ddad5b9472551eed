//! Warnings of guests: lines of the console that this project's init prints before it is ready, for
//! the user of a fleet, who does not read its consoles.

use super::plain;

/// How such a line begins. `buildroot/package/pxinit` prints it.
const MARK: &str = "PXVM WARNING ";
/// Largest number of warnings of one guest.
const COUNT_MAX: usize = 4;
/// Largest length of a warning, in characters.
const LEN_MAX: usize = 160;

/// Returns the warnings in console output.
pub fn warnings(output: &[u8]) -> Vec<String> {
    let found = plain::lines(output)
        .into_iter()
        .filter_map(|line| Some(line.strip_prefix(MARK)?.chars().take(LEN_MAX).collect()));
    found.take(COUNT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_begin_with_the_mark_are_warnings_within_bounds() {
        let output = b"boot\r\nPXVM WARNING no disk\x07\r\n# echo PXVM WARNING x\r\nPXVM READY\r\n";
        assert_eq!(warnings(output), ["no disk\\u{7}"]);
        let many = format!("{MARK}{}\n", "x".repeat(1000)).repeat(10);
        assert_eq!(warnings(many.as_bytes()), vec!["x".repeat(LEN_MAX); COUNT_MAX]);
    }
}
