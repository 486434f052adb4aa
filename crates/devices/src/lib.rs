//! Register models of the emulated chips, one folder a device.
