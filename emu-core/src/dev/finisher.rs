//! SiFive test finisher: a register that ends the machine.
//!
//! Linux reaches it as `syscon-poweroff` and `syscon-reboot`, bare-metal tests write it directly.
//! It has no state, so decoding the written value is all there is.

use crate::abi::{Exit, ExitCode};

/// Ends the machine with the code in the upper half word.
const FINISHER_FAIL: u32 = 0x3333;
/// Ends the machine with success.
const FINISHER_PASS: u32 = 0x5555;
/// Restarts the machine.
const FINISHER_RESET: u32 = 0x7777;

const STATUS_MASK: u32 = 0xffff;
const CODE_SHIFT: u32 = 16;

/// What writing `value` to the finisher asks for; other values do nothing.
pub const fn decode(value: u32) -> Option<Exit> {
    match value & STATUS_MASK {
        FINISHER_PASS => Some(Exit { code: ExitCode::PowerOff, arg: 0 }),
        FINISHER_FAIL => Some(Exit { code: ExitCode::PowerOff, arg: value >> CODE_SHIFT }),
        FINISHER_RESET => Some(Exit { code: ExitCode::Reset, arg: 0 }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_powers_off_with_status_zero() {
        assert_eq!(decode(0x5555), Some(Exit { code: ExitCode::PowerOff, arg: 0 }));
    }

    #[test]
    fn fail_powers_off_with_the_code_of_the_upper_half() {
        assert_eq!(decode(0x0007_3333), Some(Exit { code: ExitCode::PowerOff, arg: 7 }));
    }

    #[test]
    fn reset_asks_for_a_reset() {
        assert_eq!(decode(0x7777), Some(Exit { code: ExitCode::Reset, arg: 0 }));
    }

    #[test]
    fn other_values_do_nothing() {
        assert_eq!(decode(0), None);
        assert_eq!(decode(0x5554), None);
        assert_eq!(decode(0x5555_0000), None);
    }
}
