//! Where a hook goes in its function and why there, as values that people can read.

use std::fmt;

/// A place relative to the entry of its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Bytes from the entry.
    pub(crate) skip: u8,
    /// The kernel must single-step the instruction there.
    pub(crate) slow: bool,
    pub(crate) reason: Reason,
}

/// Why a hook is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The kernel emulates the instruction there.
    Emulated { form: Form, skip: u8, passed: Passed },
    /// The entry, although its instruction is stepped: what was found behind it cannot be used.
    Stepped { form: Form, better: Refusal },
    /// The entry, because the configuration says so.
    Configured { form: Form, slow: bool },
}

/// What is executed before a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    Nothing,
    One(Form),
    Several(u8),
}

/// What ended the search for a cheap place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Behind this instruction arguments or stack are no longer as the caller left them.
    ChangesCall { form: Form, skip: u8 },
    /// It writes to memory: what it means for the call is not known.
    WritesMemory { form: Form, skip: u8 },
    /// What follows it is not always reached.
    Leaves { form: Form, skip: u8 },
    /// It is not among the few instructions that may be passed over.
    NotPassed { form: Form, skip: u8 },
    /// A branch of the function leads back to it: the hook would count that, too.
    Loops { form: Form, skip: u8 },
    /// The bytes of the function end there, or are no instructions.
    Ends { skip: u8 },
    /// None among the first instructions.
    None,
}

/// An instruction, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    X86 {
        mnemonic: iced_x86::Mnemonic,
        operand: Operand,
    },
    Arm(&'static str),
    /// Bytes that are no instruction.
    Unknown,
}

/// The first operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    None,
    Register(iced_x86::Register),
    /// A distance of so many bits.
    Relative(u8),
    Memory,
    Value,
}

// === impl Place ===

impl Place {
    pub(super) fn emulated(form: Form, skip: u8, passed: Passed) -> Self {
        Self { skip, slow: false, reason: Reason::Emulated { form, skip, passed } }
    }

    pub(super) fn stepped(form: Form, better: Refusal) -> Self {
        Self { skip: 0, slow: true, reason: Reason::Stepped { form, better } }
    }

    pub(super) fn configured(form: Form, slow: bool) -> Self {
        Self { skip: 0, slow, reason: Reason::Configured { form, slow } }
    }
}

// === impl Passed ===

impl Passed {
    pub(super) fn and(self, form: Form) -> Self {
        match self {
            Self::Nothing => Self::One(form),
            Self::One(_) => Self::Several(2),
            Self::Several(count) => Self::Several(count.saturating_add(1)),
        }
    }
}

// === words ===

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emulated { form, passed: Passed::Nothing, .. } => {
                write!(f, "{form} at the entry")
            }
            Self::Emulated { form, skip, passed: Passed::One(passed) } => {
                write!(f, "{form} at +{skip}, after {} ({skip} bytes)", passed.name())
            }
            Self::Emulated { form, skip, passed: Passed::Several(count) } => {
                write!(f, "{form} at +{skip}, after {count} instructions ({skip} bytes)")
            }
            Self::Stepped { form, better } => {
                write!(f, "entry: {form} must be single-stepped; {better}")
            }
            Self::Configured { form, slow } => {
                let price = if *slow { ", which must be single-stepped" } else { "" };
                write!(f, "entry: {form}{price}; cuda.attach_at is \"entry\"")
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut says = |form: &Form, skip: &u8, what: &str| write!(f, "{form} at +{skip} {what}");
        match self {
            Self::ChangesCall { form, skip } => {
                says(form, skip, "changes an argument or the stack")
            }
            Self::WritesMemory { form, skip } => says(form, skip, "writes to memory"),
            Self::Leaves { form, skip } => says(form, skip, "may leave the function"),
            Self::NotPassed { form, skip } => says(form, skip, "is not passed over"),
            Self::Loops { form, skip } => says(form, skip, "is reached by a branch, too"),
            Self::Ends { skip } => write!(f, "no instruction at +{skip}"),
            Self::None => write!(f, "none of the first instructions is emulated"),
        }
    }
}

impl Form {
    /// Without operands.
    fn name(&self) -> String {
        match self {
            Self::X86 { mnemonic, .. } => format!("{mnemonic:?}").to_lowercase(),
            Self::Arm(name) => (*name).to_owned(),
            Self::Unknown => "no instruction".to_owned(),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        let Self::X86 { operand, .. } = self else { return Ok(()) };
        match operand {
            Operand::None => Ok(()),
            Operand::Register(register) => write!(f, " {}", format!("{register:?}").to_lowercase()),
            Operand::Relative(bits) => write!(f, " rel{bits}"),
            Operand::Memory => write!(f, " [memory]"),
            Operand::Value => write!(f, " value"),
        }
    }
}
