//! Paging: from linear to guest-physical addresses (SDM vol. 3, chapter 5; APM vol. 2, chapter 5).
//!
//! One walk serves 32-bit paging (with PSE and PSE-36), PAE, 4-level and 5-level paging and every
//! page size. It checks all rights, gives the exact #PF error code, and sets the accessed and dirty
//! flags by compare-and-exchange of the entry that it read, starting again when another CPU changed
//! it in between. It allocates nothing.
//!
//! Deliberate choices where the manuals leave freedom: no flag is set by a walk that faults
//! (5.8 allows either); entries outside RAM read as all ones and ignore the setting of flags;
//! nothing is cached here (caching is the engines' business).
//!
//! Not modelled: supervisor protection keys, shadow-stack accesses, linear-address masking, HLAT.

mod context;
mod rights;
mod walk;

#[cfg(test)]
mod tests;

pub use context::{PagingContext, PagingMode};
pub use rights::{Access, AccessKind, PfCode, Rights};
pub use walk::{PhysMem, Translation, load_pdptes, probe, walk};
