//! The cache: prepared files with their sums, found again, checked, and replaced as a whole.
//!
//! `ROOT/KEY/current` names the directory that is in use; directories are never changed once they
//! have their name. A lock file per key lets one process prepare while others wait.

use crate::ImageError;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The list of files and sums; written last.
const MANIFEST: &str = "manifest";

/// One key's place in the cache, locked.
#[derive(Debug)]
pub(crate) struct Slot {
    dir: PathBuf,
    /// Holds the lock until dropped.
    _lock: File,
}

/// Mimeo's directory in the user's cache directory.
pub(crate) fn root() -> Result<PathBuf, ImageError> {
    let var = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let base = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|h| h.join(".cache")));
    Ok(base.ok_or(ImageError::NoCache)?.join("mimeo"))
}

impl Slot {
    /// Locks a key, waiting for another process that prepares the same; `wait` is called before.
    pub(crate) fn lock(root: &Path, key: &str, wait: &mut dyn FnMut()) -> Result<Self, ImageError> {
        let dir = root.join(key);
        fs::create_dir_all(&dir).map_err(ImageError::io(&dir))?;
        let path = dir.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let lock = lock.map_err(ImageError::io(&path))?;
        if lock.try_lock().is_err() {
            wait();
            lock.lock().map_err(ImageError::io(&path))?;
        }
        Ok(Self { dir, _lock: lock })
    }

    /// The key's own directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The prepared directory, if there is one whose files are all there and unchanged.
    pub(crate) fn current(&self) -> Option<PathBuf> {
        let name = fs::read_to_string(self.dir.join("current")).ok()?;
        let name = name.trim();
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return None;
        }
        let dir = self.dir.join(name);
        let manifest = fs::read_to_string(dir.join(MANIFEST)).ok()?;
        let mut lines = manifest.lines().peekable();
        lines.peek()?;
        lines.all(|line| check(&dir, line).is_some()).then_some(dir)
    }

    /// An empty directory to prepare in; what an interrupted process left there is removed.
    pub(crate) fn workspace(&self) -> Result<PathBuf, ImageError> {
        let dir = self.dir.join("work");
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(ImageError::io(&dir))?;
        }
        fs::create_dir(&dir).map_err(ImageError::io(&dir))?;
        Ok(dir)
    }

    /// Makes the workspace's files current under `name`, as one step. Directories other than this
    /// and the one before are removed.
    pub(crate) fn publish(
        &self,
        work: &Path,
        name: &str,
        files: &[&str],
    ) -> Result<PathBuf, ImageError> {
        let mut manifest = String::new();
        for file in files {
            let (sum, len) = sum(&work.join(file)).map_err(ImageError::io(&work.join(file)))?;
            manifest.push_str(&format!("{sum} {len} {file}\n"));
        }
        let before = fs::read_to_string(self.dir.join("current")).unwrap_or_default();
        // A name of its own each time: a damaged directory of the same version may be in use.
        let digest = hex(&Sha256::digest(manifest.as_bytes())[..4]);
        let mut unique = format!("{name}-{digest}");
        while self.dir.join(&unique).exists() {
            unique.push('+');
        }
        let (manifest_path, dir) = (work.join(MANIFEST), self.dir.join(&unique));
        write_synced(&manifest_path, manifest.as_bytes())?;
        fs::rename(work, &dir).map_err(ImageError::io(&dir))?;
        let (next, current) = (self.dir.join("current.new"), self.dir.join("current"));
        write_synced(&next, unique.as_bytes())?;
        fs::rename(&next, &current).map_err(ImageError::io(&current))?;
        self.remove_others(&[&unique, before.trim()]);
        Ok(dir)
    }

    /// Removes old directories; one that resists does no harm.
    fn remove_others(&self, keep: &[&str]) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let kept = keep.iter().any(|k| entry.file_name() == *k);
            if !kept && entry.path().join(MANIFEST).exists() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A manifest's line, if the file is as it says: `SUM LENGTH NAME`.
fn check(dir: &Path, line: &str) -> Option<()> {
    let mut words = line.split(' ');
    let (want, len, name) = (words.next()?, words.next()?, words.next()?);
    if name.contains('/') {
        return None;
    }
    let path = dir.join(name);
    // The length first: it tells a truncated file without reading it.
    let right_length = fs::metadata(&path).ok()?.len() == len.parse::<u64>().ok()?;
    (right_length && sum(&path).ok()?.0 == want).then_some(())
}

/// SHA-256 and length of a file.
fn sum(path: &Path) -> std::io::Result<(String, u64)> {
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let (mut buffer, mut len) = (vec![0; 1 << 18], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hex(&hash.finalize()), len)),
            n => {
                hash.update(&buffer[..n]);
                len += n as u64;
            }
        }
    }
}

/// Writes a file and sees that it is on the disk before it gets its final name.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let write = || {
        let mut f = File::create(path)?;
        f.write_all(bytes)?;
        f.sync_all()
    };
    write().map_err(ImageError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Temp(PathBuf);

    impl Temp {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("mimeo-cache-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn prepare(slot: &Slot, contents: &[u8]) -> PathBuf {
        let work = slot.workspace().unwrap();
        fs::write(work.join("f"), contents).unwrap();
        slot.publish(&work, "v1", &["f"]).unwrap()
    }

    #[test]
    fn what_was_published_is_found_and_damage_is_noticed() {
        let t = Temp::new("a");
        let slot = Slot::lock(&t.0, "k", &mut || panic!("nobody holds it")).unwrap();
        assert_eq!(slot.current(), None);
        let dir = prepare(&slot, b"one");
        assert_eq!(slot.current(), Some(dir.clone()));
        fs::write(dir.join("f"), b"onf").unwrap();
        assert_eq!(slot.current(), None);
        fs::write(dir.join("f"), b"on").unwrap();
        assert_eq!(slot.current(), None);
        let again = prepare(&slot, b"one");
        assert_ne!(again, dir);
        assert_eq!(slot.current(), Some(again.clone()));
        fs::remove_file(again.join("f")).unwrap();
        assert_eq!(slot.current(), None);
        fs::write(again.join(MANIFEST), "").unwrap();
        assert_eq!(slot.current(), None);
        fs::write(t.0.join("k/current"), "../evil").unwrap();
        assert_eq!(slot.current(), None);
    }

    #[test]
    fn the_one_before_stays_for_those_who_read_it() {
        let t = Temp::new("b");
        let slot = Slot::lock(&t.0, "k", &mut || {}).unwrap();
        let [a, b, c] = [b"1", b"2", b"3"].map(|s| prepare(&slot, s));
        assert!(!a.exists() && b.exists() && c.exists());
    }

    #[test]
    fn the_second_waits_for_the_first() {
        let t = Temp::new("c");
        let first = Slot::lock(&t.0, "k", &mut || {}).unwrap();
        std::thread::scope(|s| {
            let (tell, told) = std::sync::mpsc::channel();
            let root = &t.0;
            let second = s.spawn(move || {
                let slot = Slot::lock(root, "k", &mut || tell.send(()).unwrap()).unwrap();
                slot.current()
            });
            // It has said that it waits; only now is there something to find.
            told.recv().unwrap();
            let dir = prepare(&first, b"x");
            drop(first);
            assert_eq!(second.join().unwrap(), Some(dir));
        });
    }
}
