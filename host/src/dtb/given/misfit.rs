//! What a given tree says that the machine is not, and how the tree is made to fit.

use std::fmt;

use dtoolkit::model::DeviceTree;

use super::super::{TreeError, set, strings};

/// A statement of the tree that is wrong for the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Misfit {
    /// Path of the node.
    pub path: String,
    /// What it says, and what the machine has.
    pub what: String,
    /// How the tree is made to fit.
    pub repair: Repair,
}

/// All misfits of a tree, in the order in which they were found.
#[derive(Default, Debug)]
pub struct Misfits(Vec<Misfit>);

/// How a tree is made to fit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Repair {
    /// The node gets the status `disabled`: a guest loses nothing but what is not there. Done
    /// without asking.
    Disable,
    /// The node gets this property.
    Set(&'static str, Vec<u8>),
    /// The node is removed.
    Remove,
    /// It cannot be.
    Impossible,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

impl Misfits {
    /// Adds one.
    pub fn add(&mut self, path: impl Into<String>, what: impl Into<String>, repair: Repair) {
        self.0.push(Misfit { path: path.into(), what: what.into(), repair });
    }

    /// Makes the tree fit, with a warning that lists what was changed. Unless the user wants that
    /// (`fix`), all but [`Repair::Disable`] is refused, with a list of what is wrong.
    pub fn repair(self, tree: &mut DeviceTree, fix: bool) -> Result<(), TreeError> {
        let is_refused = |misfit: &&Misfit| match misfit.repair {
            Repair::Disable => false,
            Repair::Set(..) | Repair::Remove => !fix,
            Repair::Impossible => true,
        };
        let refused: Vec<&Misfit> = self.0.iter().filter(is_refused).collect();
        if !refused.is_empty() {
            let hopeless = refused.iter().any(|misfit| misfit.repair == Repair::Impossible);
            let hint = if hopeless { "" } else { TreeError::FIX };
            return Err(TreeError::Misfit { hint, list: list(refused) });
        }
        self.0.iter().for_each(|misfit| apply(tree, misfit));
        let (absent, changed): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|misfit| misfit.repair == Repair::Disable);
        if !changed.is_empty() {
            tracing::warn!("changed in the device tree that guests get:{}", list(changed));
        }
        if !absent.is_empty() {
            let absent: Vec<&str> = absent.iter().map(|misfit| misfit.path.as_str()).collect();
            let absent = absent.join(", ");
            tracing::warn!("disabled in the device tree, as this machine lacks it: {absent}");
        }
        Ok(())
    }
}

/// Returns the misfits as the end of a message: a line each if there are several.
fn list(misfits: Vec<&Misfit>) -> String {
    match misfits[..] {
        [misfit] => format!(" {misfit}"),
        _ => misfits.into_iter().map(|misfit| format!("\n  {misfit}")).collect(),
    }
}

fn apply(tree: &mut DeviceTree, misfit: &Misfit) {
    let path = misfit.path.as_str();
    match &misfit.repair {
        Repair::Disable => put(tree, path, "status", strings(&["disabled"])),
        Repair::Set(name, value) => put(tree, path, name, value.clone()),
        Repair::Remove => {
            if let Some((parent, name)) = path.rsplit_once('/')
                && let Some(parent) = tree.find_node_mut(&format!("{parent}/"))
            {
                parent.remove_child(name);
            }
        }
        Repair::Impossible => {}
    }
}

fn put(tree: &mut DeviceTree, path: &str, name: &str, value: Vec<u8>) {
    if let Some(node) = tree.find_node_mut(path) {
        set(node, name, value);
    }
}
