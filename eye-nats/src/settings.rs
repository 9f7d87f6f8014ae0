//! Settings drift: a stream or consumer on the server whose settings differ from the required ones.

/// Reason for which a required stream or consumer is not usable.
#[derive(Debug)]
pub enum ProvisionError {
    /// It may become usable without an operator, for example when the server is available again.
    Temporary(String),
    /// An operator must act, for example because a setting differs.
    Permanent(String),
}

/// Name and value of a setting.
pub(crate) type Setting = (&'static str, String);

/// Describes the settings that differ from `required`; empty when none does. Both lists name the same settings.
pub(crate) fn drift(found: &[Setting], required: &[Setting]) -> String {
    let different = found.iter().zip(required).filter(|(found, required)| found != required);
    let descriptions: Vec<String> =
        different.map(|((name, found), (_, required))| format!("{name} is {found}, not {required}")).collect();
    descriptions.join(", ")
}
