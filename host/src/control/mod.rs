//! Control of the VMs of a running fleet: their states, and the table of commands on them.
//!
//! A row of the table makes the subcommand of `pxvm`, the route of the API, its description in
//! OpenAPI, and the button of the dashboard. To add a command, add a row, with types for its
//! arguments and its reply if it has some, and execute it in the backends: the compiler shows the
//! `match`es that lack it, `execute` in `backend/cpu/worker.rs` and `backend/cuda/runner/commands.rs`,
//! and the table of a VM's life in `backend/life.rs`. Tests show the tables that name each command:
//! that of the guide, `docs/api.md`, and that of the transitions of a VM's life.

pub mod arguments;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use self::arguments::NoArguments;
pub use self::state::{StateCounts, VmState};

/// What a command does to the state of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// The state stays as it is.
    None,
    /// The VM is paused.
    Pauses,
    /// The VM continues from where it was paused.
    Resumes,
    /// The VM boots.
    Boots,
    /// The VM has ended.
    Stops,
}

/// A row of the table: what all surfaces need to know of a command.
#[derive(Debug)]
pub struct Row {
    /// Name on the command line, in the API's paths and in messages.
    pub name: &'static str,
    /// One line on many machines, for `pxvm help`.
    pub about: &'static str,
    /// One line on a single VM, for the API's description and the dashboard.
    pub summary: &'static str,
    /// States in which a VM takes the command.
    pub takes: &'static [VmState],
    /// What the command does to the VM's state.
    pub effect: Effect,
    /// What the user loses by the command; the dashboard asks first.
    pub loses: Option<&'static str>,
    /// The command that this one undoes; both have one button.
    pub undoes: Option<Command>,
}

/// Makes the types of commands, and their conversions, of the table.
macro_rules! commands {
    ($(
        $(#[doc = $doc:literal])+
        $Name:ident($Arguments:ty) $(-> $Reply:ty)? { $($field:ident: $value:expr,)* }
    )*) => {
        /// A command on one VM, without its arguments. When the VM has executed it,
        /// [`EventKind::Completed`](crate::backend::EventKind::Completed) follows, in order with
        /// the VM's other events.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Command {
            $($(#[doc = $doc])+ $Name,)*
        }

        /// A command with its arguments.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Call {
            $(#[doc = concat!("[`Command::", stringify!($Name), "`]")] $Name($Arguments),)*
        }

        /// What a command returned when it was completed.
        #[derive(Clone, PartialEq, Eq, Debug, Serialize)]
        #[serde(untagged)]
        pub enum Reply {
            /// Nothing but that it was completed.
            None,
            $($(
                #[doc = concat!("That of [`Command::", stringify!($Name), "`].")]
                $Name($Reply),
            )?)*
        }

        impl Command {
            /// All commands, in the order of the table.
            pub const ALL: [Self; [$(stringify!($Name)),*].len()] = [$(Self::$Name),*];

            /// Returns the row of the table.
            pub const fn row(self) -> &'static Row {
                match self {
                    $(Self::$Name => const { &Row { $($field: $value,)* } },)*
                }
            }

            /// Returns the command with arguments in JSON; none are an empty object.
            pub fn parse(self, json: &[u8]) -> Result<Call, serde_json::Error> {
                match self {
                    $(Self::$Name => arguments::parse(json).map(Call::$Name),)*
                }
            }

            /// Adds the arguments to a subcommand of the command line.
            pub fn augment(self, subcommand: clap::Command) -> clap::Command {
                match self {
                    $(Self::$Name => <$Arguments as clap::Args>::augment_args(subcommand),)*
                }
            }

            /// Returns the command with arguments from the command line.
            pub fn from_matches(self, matches: &clap::ArgMatches) -> Result<Call, clap::Error> {
                match self {
                    $(Self::$Name => {
                        let arguments = clap::FromArgMatches::from_arg_matches(matches)?;
                        Ok(Call::$Name(arguments))
                    })*
                }
            }

            /// Returns the JSON schema of the reply; `None` for a command without one.
            pub fn reply_schema(self) -> Option<Value> {
                match self {
                    $(Self::$Name => {
                        const { None::<fn() -> Value> }
                            $(.or(Some(<$Reply as ReplyBody>::schema as fn() -> Value)))?
                            .map(|schema| schema())
                    })*
                }
            }
        }

        impl Call {
            /// Returns the command without its arguments.
            pub fn command(&self) -> Command {
                match self {
                    $(Self::$Name(_) => Command::$Name,)*
                }
            }

            /// Returns the arguments in JSON.
            pub fn arguments(&self) -> Value {
                match self {
                    $(Self::$Name(arguments) => arguments::to_json(arguments),)*
                }
            }
        }
    };
}

commands! {
    /// Pauses the VM. It keeps its memory, and its clock continues.
    Pause(NoArguments) {
        name: "pause",
        about: "Pause machines; they keep their memory",
        summary: "Pause a VM. It keeps its memory, and its clock continues",
        takes: &[VmState::Booting, VmState::Ready],
        effect: Effect::Pauses,
        loses: None,
        undoes: None,
    }
    /// Resumes a paused VM.
    Resume(NoArguments) {
        name: "resume",
        about: "Resume paused machines",
        summary: "Resume a paused VM",
        takes: &[VmState::Paused],
        effect: Effect::Resumes,
        loses: None,
        undoes: Some(Command::Pause),
    }
    /// Resets the VM to its first instruction, in whatever state it is, and lets it run; its old
    /// memory is given back. The first reset of a VM that was added to the fleet is its power-on.
    Reset(NoArguments) {
        name: "reset",
        about: "Reset machines to their first instruction, in whatever state they are",
        summary: "Reset a VM to its first instruction, in whatever state it is",
        takes: &VmState::ALL,
        effect: Effect::Boots,
        loses: Some("It boots again at once; what it had in memory, and had written, is lost."),
        undoes: None,
    }
    /// Stops the VM and gives its memory back.
    Stop(NoArguments) {
        name: "stop",
        about: "Stop machines and give their memory back to the fleet",
        summary: "Stop a VM and give its memory back to the fleet",
        takes: &[VmState::Booting, VmState::Ready, VmState::Paused],
        effect: Effect::Stops,
        loses: Some(
            "It ends at once and gives its memory back; what it had written is lost. \
             Reset boots it again.",
        ),
        undoes: None,
    }
}

/// The reply of a command.
pub trait ReplyBody: Serialize {
    /// Returns the reply's JSON schema.
    fn schema() -> Value;
}

/// Why a backend did not execute a command.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// The command failed, for this reason.
    #[error("{0}")]
    Failed(String),
}

impl Command {
    /// Returns the command's name.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Returns the command of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.name() == name)
    }

    /// Returns the JSON schema of the arguments; `None` for a command without arguments.
    pub fn schema(self) -> Option<Value> {
        arguments::schema(&self.augment(clap::Command::new(self.name())))
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl VmState {
    /// Whether a VM in this state takes a command.
    pub fn takes(self, command: Command) -> bool {
        command.row().takes.contains(&self)
    }

    /// Whether this can be the state after a command was completed.
    pub fn follows(self, command: Command) -> bool {
        match command.row().effect {
            Effect::None | Effect::Boots => true,
            Effect::Pauses => self == Self::Paused,
            Effect::Resumes => self.is_running(),
            Effect::Stops => self == Self::Stopped,
        }
    }
}
