//! The double mapping.
#![expect(
    unsafe_code,
    reason = "mmap and raw writes to pages that are also mapped executable"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// How the pages were obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// `memfd_create` with `MFD_EXEC` (Linux 6.3 and later).
    MemfdExec,
    /// `memfd_create` of an older kernel.
    Memfd,
    /// An unnamed file (`O_TMPFILE`) in the user's cache directory.
    CacheFile,
    /// Shared anonymous memory, mapped a second time with `mremap`.
    Remap,
}

/// The host allows no executable memory.
#[derive(Debug, thiserror::Error)]
#[error(
    "this host allows no executable memory ({tried}): allow memfd_create with MFD_EXEC, or use \
     --engine interp"
)]
pub struct CodeMemoryError {
    tried: String,
}

/// Offset and length reach outside the code memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset} do not fit into {size} bytes of code memory")]
pub struct OutOfRange {
    offset: usize,
    len: usize,
    size: usize,
}

/// Pages for generated code: written through one mapping, executed through another.
#[derive(Debug)]
pub struct CodeMemory {
    write: Mapping,
    exec: Mapping,
    method: Method,
}

impl CodeMemory {
    /// Maps `len` bytes (rounded up to whole pages), zeroed, by the first method that the host
    /// allows.
    ///
    /// # Errors
    /// No method works: the message lists what was tried.
    pub fn new(len: usize) -> Result<Self, CodeMemoryError> {
        let mut tried = Vec::new();
        for method in [
            Method::MemfdExec,
            Method::Memfd,
            Method::CacheFile,
            Method::Remap,
        ] {
            match Self::with_method(method, len) {
                Ok(memory) => return Ok(memory),
                Err(e) => tried.push(format!("{method:?}: {e}")),
            }
        }
        Err(CodeMemoryError {
            tried: tried.join("; "),
        })
    }

    /// Maps `len` bytes by one method only (for tests and for telling a person about the host).
    ///
    /// # Errors
    /// What the host answered.
    pub fn with_method(method: Method, len: usize) -> io::Result<Self> {
        let len = len
            .max(1)
            .checked_next_multiple_of(4096)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let (write, exec) = match method {
            Method::MemfdExec => map_file(&memfd(true)?, len)?,
            Method::Memfd => map_file(&memfd(false)?, len)?,
            Method::CacheFile => map_file(&cache_file()?, len)?,
            Method::Remap => remap(len)?,
        };
        Ok(Self {
            write,
            exec,
            method,
        })
    }

    /// The executable address of the first byte. Page-aligned.
    #[inline]
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.exec.ptr
    }

    /// Size in bytes.
    #[inline]
    #[must_use]
    pub fn size(&self) -> usize {
        self.exec.len
    }

    /// How the pages were obtained.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// Copies code to `offset`. Code that another thread may be executing must only be changed
    /// with [`Self::patch_u32`].
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing is written then.
    pub fn write(&mut self, offset: usize, code: &[u8]) -> Result<(), OutOfRange> {
        self.check(offset, code.len())?;
        // SAFETY: the range lies inside the writable mapping (checked), which no reference
        // points into; `&mut self` excludes other writers. The source cannot overlap it for the
        // same reason.
        unsafe {
            std::ptr::copy_nonoverlapping(
                code.as_ptr(),
                self.write.ptr.as_ptr().add(offset),
                code.len(),
            );
        }
        Ok(())
    }

    /// Atomically replaces four bytes at `offset`, a multiple of 4, while other threads may be
    /// executing around them (SDM vol. 3, 9.1.3: they see the old or the new code).
    ///
    /// # Errors
    /// [`OutOfRange`], also for an unaligned offset.
    pub fn patch_u32(&self, offset: usize, value: u32) -> Result<(), OutOfRange> {
        self.check(
            offset,
            if offset.is_multiple_of(4) {
                4
            } else {
                usize::MAX
            },
        )?;
        // SAFETY: inside the writable mapping and aligned (checked; the mapping is page-aligned);
        // the atomic access may race with other patches and with instruction fetch only.
        let word =
            unsafe { AtomicU32::from_ptr(self.write.ptr.as_ptr().add(offset).cast::<u32>()) };
        word.store(value, Ordering::Release);
        Ok(())
    }

    /// Copies code out, for verifiers and disassembly.
    ///
    /// # Errors
    /// [`OutOfRange`].
    pub fn read(&self, offset: usize, len: usize) -> Result<Vec<u8>, OutOfRange> {
        self.check(offset, len)?;
        let mut code = vec![0; len];
        for (i, byte) in code.iter_mut().enumerate() {
            // SAFETY: inside the executable mapping (checked), which is readable. Volatile: a
            // patch may happen at the same time.
            *byte = unsafe { self.exec.ptr.as_ptr().add(offset + i).read_volatile() };
        }
        Ok(code)
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), OutOfRange> {
        let size = self.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(OutOfRange { offset, len, size }),
        }
    }
}

/// One mapping; unmapped on drop.
#[derive(Debug)]
struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory at a fixed address; all access goes through `CodeMemory`'s methods, which
// need `&mut` for plain writes and are atomic otherwise.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; that no thread executes in it any more is the duty of whoever
        // drops the owner of the code, as its documentation says.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

fn mapping(at: *mut libc::c_void, len: usize) -> io::Result<Mapping> {
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let ptr = NonNull::new(at.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(Mapping { ptr, len })
}

fn map_file(file: &File, len: usize) -> io::Result<(Mapping, Mapping)> {
    file.set_len(len as u64)?;
    let map = |prot| {
        // SAFETY: a fresh mapping of our own file at an address of the kernel's choosing.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        mapping(at, len)
    };
    Ok((
        map(libc::PROT_READ | libc::PROT_WRITE)?,
        map(libc::PROT_READ | libc::PROT_EXEC)?,
    ))
}

fn memfd(exec: bool) -> io::Result<File> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let flags = libc::MFD_CLOEXEC | if exec { MFD_EXEC } else { 0 };
    // SAFETY: a NUL-terminated name; the call touches nothing else.
    let fd = unsafe { libc::memfd_create(c"mimeo-code".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn cache_file() -> io::Result<File> {
    let directory = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .ok_or(io::ErrorKind::NotFound)?;
    File::options()
        .read(true)
        .write(true)
        .mode(0o700)
        .custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC)
        .open(directory)
}

fn remap(len: usize) -> io::Result<(Mapping, Mapping)> {
    // SAFETY: a fresh shared anonymous mapping.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    let write = mapping(at, len)?;
    // SAFETY: an old size of zero duplicates our own shared mapping at a new address.
    let at = unsafe { libc::mremap(at, 0, len, libc::MREMAP_MAYMOVE) };
    let exec = mapping(at, len)?;
    // SAFETY: our own second mapping, not yet used.
    if unsafe { libc::mprotect(at, len, libc::PROT_READ | libc::PROT_EXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((write, exec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(memory: &CodeMemory, offset: usize) -> u32 {
        // SAFETY: the tests put `mov eax, imm32; ret` there.
        let f: extern "C" fn() -> u32 =
            unsafe { std::mem::transmute(memory.base().as_ptr().add(offset)) };
        f()
    }

    fn exercise(memory: &mut CodeMemory) {
        memory
            .write(16, &[0x90, 0x90, 0x90, 0xb8, 1, 0, 0, 0, 0xc3])
            .expect("in range");
        assert_eq!(run(memory, 16), 1);
        memory.patch_u32(20, 0x1234_5678).expect("in range");
        assert_eq!(run(memory, 16), 0x1234_5678);
        assert_eq!(memory.read(19, 2).expect("in range"), [0xb8, 0x78]);
    }

    /// Permissions of the mapping that holds an address, from the kernel.
    fn permissions(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        maps.lines()
            .find(|line| {
                let (start, rest) = line.split_once('-').expect("a range");
                let end = rest.split(' ').next().expect("an end");
                let parse = |s| usize::from_str_radix(s, 16).expect("hexadecimal");
                (parse(start)..parse(end)).contains(&address)
            })
            .map(|line| line.split(' ').nth(1).unwrap_or_default().to_owned())
            .expect("mapped")
    }

    #[test]
    fn each_method_that_the_host_allows_works_and_is_never_writable_and_executable() {
        let mut works = 0;
        for method in [
            Method::MemfdExec,
            Method::Memfd,
            Method::CacheFile,
            Method::Remap,
        ] {
            match CodeMemory::with_method(method, 8192) {
                Ok(mut memory) => {
                    exercise(&mut memory);
                    let exec = permissions(memory.base().as_ptr() as usize);
                    let write = permissions(memory.write.ptr.as_ptr() as usize);
                    assert_eq!((&exec[..3], &write[..3]), ("r-x", "rw-"), "{method:?}");
                    works += 1;
                }
                Err(e) => println!("{method:?}: skipped, the host says {e}"),
            }
        }
        assert!(works > 0, "no method works on this host");
    }

    #[test]
    fn ranges_are_checked() {
        let mut memory = CodeMemory::new(1).expect("executable memory");
        assert_eq!(memory.size(), 4096);
        assert!(memory.write(4095, &[0]).is_ok());
        assert!(memory.write(4095, &[0, 0]).is_err());
        assert!(memory.write(usize::MAX, &[0]).is_err());
        assert!(memory.patch_u32(4096, 0).is_err());
        assert!(memory.patch_u32(2, 0).is_err());
        assert!(memory.read(4090, 7).is_err());
    }
}
