//! Sizes and bytes as people read and write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes: `24M`, `512K`, `1G`, `16MiB` or plain bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

impl Size {
    /// Returns `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// Returns the size as an option takes it, such as `24M`.
    pub fn option(self) -> String {
        match self.0.trailing_zeros() {
            _ if self.0 == 0 => "0".into(),
            20.. => format!("{}M", self.0 >> 20),
            10.. => format!("{}K", self.0 >> 10),
            _ => self.0.to_string(),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let shift = match suffix.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            _ => return Err("write it like 24M, 512K or 1G".into()),
        };
        let number: u64 = number.parse().map_err(|_| "write it like 24M, 512K or 1G")?;
        let size = number.checked_mul(1 << shift).ok_or("more bytes than can be counted")?;
        Ok(Self(size))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let unit = UNITS.iter().find(|&&(_, shift)| self.0 >= 1 << shift);
        match unit {
            Some(&(name, shift)) if self.0.trailing_zeros() >= shift => {
                write!(f, "{} {name}", self.0 >> shift)
            }
            Some(&(name, shift)) => {
                write!(f, "{:.1} {name}", self.0 as f64 / (1u64 << shift) as f64)
            }
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// Returns bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_the_usual_spellings() {
        for (text, bytes) in [("24M", 24 << 20), ("1g", 1 << 30), ("4KiB", 4096), ("77", 77)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["", "M", "-1M", "24T", "1.5M", "99999999999999999999", "17179869184G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        assert_eq!(Size::mib(24).to_string(), "24 MiB");
        assert_eq!(Size(3 << 19).to_string(), "1.5 MiB");
        assert_eq!(Size(12).to_string(), "12 bytes");
    }
}
