//! Payload loaders, boot protocols, ACPI tables.
