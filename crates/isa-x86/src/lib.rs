//! Facts of the x86 instruction set: what each instruction form is and touches.
