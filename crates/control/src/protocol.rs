//! The control socket's language: a line of JSON each way; after `console`, the serial port's bytes.

use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How is it?
    Status,
    /// Press the power button.
    PowerButton,
    /// End the VM now.
    Stop,
    /// The serial port from now on.
    Console,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// It was done.
    Done,
    /// How it is.
    Status(Status),
    /// It was not done; why.
    Refused {
        /// A sentence.
        why: String,
    },
}

/// How a VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `starting` or `running`.
    pub phase: String,
    /// Seconds since its monitor started.
    pub uptime: u64,
    /// Clients at its console.
    pub consoles: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words() {
        let text = serde_json::to_string(&Request::PowerButton).unwrap();
        assert_eq!(text, r#"{"request":"power-button"}"#);
        assert!(serde_json::from_str::<Request>(r#"{"request":"dance"}"#).is_err());
        let why = String::from("no");
        let text = serde_json::to_string(&Reply::Refused { why }).unwrap();
        assert_eq!(text, r#"{"reply":"refused","why":"no"}"#);
    }
}
