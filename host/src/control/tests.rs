//! Tests of the table of commands.

use super::*;

#[test]
fn each_state_takes_the_commands_that_make_sense_in_it() {
    use Command::{Pause, Reset, Resume, Stop};
    let taken = |state: VmState| {
        Command::ALL.into_iter().filter(|&command| state.takes(command)).collect::<Vec<_>>()
    };
    assert_eq!(taken(VmState::Booting), [Pause, Reset, Stop]);
    assert_eq!(taken(VmState::Ready), [Pause, Reset, Stop]);
    assert_eq!(taken(VmState::Paused), [Resume, Reset, Stop]);
    for ended in [VmState::Halted, VmState::Faulted, VmState::Stopped] {
        assert_eq!(taken(ended), [Reset]);
    }
}

#[test]
fn rows_have_texts_and_names_of_their_own() {
    for (i, command) in Command::ALL.into_iter().enumerate() {
        let Row { name, about, summary, takes, .. } = command.row();
        assert_eq!((command as usize, Command::named(name)), (i, Some(command)));
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
        for text in [about, summary] {
            assert!(text.starts_with(|c: char| c.is_ascii_uppercase()), "{text}");
            assert!(!text.ends_with('.'), "{text}");
        }
        assert!(!takes.is_empty(), "{name}");
    }
    assert_eq!(Command::named("explode"), None);
}

#[test]
fn a_command_that_undoes_another_is_taken_in_the_state_that_the_other_leaves() {
    for command in Command::ALL {
        let Some(undone) = command.row().undoes else { continue };
        let after = VmState::ALL.into_iter().filter(|state| state.follows(undone));
        assert!(after.into_iter().all(|state| state.takes(command) && !state.takes(undone)));
    }
}

#[test]
fn calls_know_their_commands() {
    for command in Command::ALL {
        let matches = command.augment(clap::Command::new("x")).try_get_matches_from(["x"]);
        let Ok(matches) = matches else { continue };
        let call = command.from_matches(&matches).unwrap();
        assert_eq!(call.command(), command);
        let json = call.arguments().to_string();
        assert_eq!(command.parse(json.as_bytes()).unwrap(), call);
    }
}
