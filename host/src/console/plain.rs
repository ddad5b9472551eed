//! Console output as lines that are safe to print among others: no guest moves the reader's cursor.

/// Returns the lines of console output. What cannot be seen is written as an escape sequence.
pub fn lines(output: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(output);
    text.lines().map(|line| plain(line.trim_end())).collect()
}

fn plain(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            // These are escaped for the sake of source text only.
            '"' | '\'' | '\\' | '\t' => plain.push(c),
            _ => plain.extend(c.escape_debug()),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_upon_is_escaped() {
        assert_eq!(lines(b"it's C:\\\t\"x\"\r\n\nlogin: "), ["it's C:\\\t\"x\"", "", "login:"]);
        assert_eq!(lines(b"\x1b[2J\x07\rover\x9b1m"), ["\\u{1b}[2J\\u{7}\\rover\u{fffd}1m"]);
        assert_eq!(
            lines("\u{9b}2J \u{202e}txt gr\u{fc}n".as_bytes()),
            ["\\u{9b}2J \\u{202e}txt gr\u{fc}n"]
        );
    }
}
