//! The directory of all state folders of a user.

use crate::{ControlError, Folder, RecordV1, Seen, check_name};
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// All VMs of one user.
#[derive(Debug, Clone)]
pub struct Root {
    dir: PathBuf,
}

/// Where state folders go, best first: `$XDG_RUNTIME_DIR`, `/run/user/UID`, the user's cache.
fn place() -> Option<PathBuf> {
    let var = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let own = || {
        let uid = rustix::process::geteuid().as_raw();
        Some(PathBuf::from(format!("/run/user/{uid}"))).filter(|p| p.is_dir())
    };
    let cache = || {
        let base = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|h| h.join(".cache")));
        base.map(|b| b.join("mimeo/run"))
    };
    match var("XDG_RUNTIME_DIR").or_else(own) {
        Some(dir) => Some(dir.join("mimeo")),
        None => cache(),
    }
}

impl Root {
    /// The user's own; made if it is not there.
    ///
    /// # Errors
    /// There is no place for it, or it belongs to somebody else.
    pub fn open() -> Result<Self, ControlError> {
        Self::at(&place().ok_or(ControlError::NoPlace)?)
    }

    /// In directory `dir`; made if it is not there.
    ///
    /// # Errors
    /// It cannot be made or belongs to somebody else.
    pub fn at(dir: &Path) -> Result<Self, ControlError> {
        let dir = dir.join("vms");
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&dir)
            .map_err(ControlError::io(&dir))?;
        let meta = fs::symlink_metadata(&dir).map_err(ControlError::io(&dir))?;
        let ours = meta.is_dir()
            && meta.uid() == rustix::process::geteuid().as_raw()
            && meta.permissions().mode() & 0o022 == 0;
        if !ours {
            return Err(ControlError::NotOurs(dir));
        }
        let root = Self { dir };
        root.sweep()?;
        Ok(root)
    }

    /// The folders' directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Holds off everybody who would make or remove folders.
    fn lock(&self) -> Result<File, ControlError> {
        let path = self.dir.join(".lock");
        let options = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let lock = options.map_err(ControlError::io(&path))?;
        lock.lock().map_err(ControlError::io(&path))?;
        Ok(lock)
    }

    /// Claims `record.name` for this process. What an ended VM of the same name left is removed.
    ///
    /// # Errors
    /// [`ControlError::InUse`], [`ControlError::Name`], or the file system's.
    pub fn claim(&self, record: &RecordV1) -> Result<Folder, ControlError> {
        check_name(&record.name)?;
        let _lock = self.lock()?;
        let dir = self.dir.join(&record.name);
        if dir.exists() {
            let seen = Seen::at(&dir);
            if seen.running() {
                return Err(ControlError::InUse(record.name.clone()));
            }
            fs::remove_dir_all(&dir).map_err(ControlError::io(&dir))?;
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(ControlError::io(&dir))?;
        Folder::claim(&dir, record)
    }

    /// The folder of `name`.
    ///
    /// # Errors
    /// [`ControlError::Unknown`].
    pub fn find(&self, name: &str) -> Result<Seen, ControlError> {
        check_name(name)?;
        let dir = self.dir.join(name);
        if dir.is_dir() {
            return Ok(Seen::at(&dir));
        }
        let near = self.names();
        let near = near.iter().find(|n| n.starts_with(name) || alike(n, name));
        Err(ControlError::Unknown {
            name: name.to_owned(),
            others: near.map_or_else(String::new, |n| format!(" (did you mean {n}?)")),
        })
    }

    /// All names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|n| check_name(n).is_ok())
            .collect();
        names.sort();
        names
    }

    /// All folders, in the order of their names.
    #[must_use]
    pub fn all(&self) -> Vec<Seen> {
        let names = self.names();
        names.iter().map(|n| Seen::at(&self.dir.join(n))).collect()
    }

    /// Removes the folder of a VM that has ended.
    ///
    /// # Errors
    /// [`ControlError::Running`], [`ControlError::Unknown`], or the file system's.
    pub fn remove(&self, name: &str) -> Result<(), ControlError> {
        let _lock = self.lock()?;
        let seen = self.find(name)?;
        if seen.running() {
            return Err(ControlError::Running(name.to_owned()));
        }
        fs::remove_dir_all(seen.dir()).map_err(ControlError::io(seen.dir()))
    }

    /// Removes what nobody wants: folders of VMs that were to go with their end, and folders that
    /// were never finished.
    fn sweep(&self) -> Result<(), ControlError> {
        let unwanted = |seen: &Seen| !seen.running() && seen.record().is_none_or(|r| r.remove);
        if !self.all().iter().any(unwanted) {
            return Ok(());
        }
        let _lock = self.lock()?;
        for seen in self.all().iter().filter(|s| unwanted(s)) {
            // Somebody else may be faster.
            let _ = fs::remove_dir_all(seen.dir());
        }
        Ok(())
    }
}

/// Whether two names differ by one letter more, less or other.
fn alike(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let same_front = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (rest_a, rest_b) = (&a[same_front..], &b[same_front..]);
    let cut = |r: &[u8], n: usize| r.get(n..).map(<[u8]>::to_vec);
    cut(rest_a, 1) == cut(rest_b, 1)
        || cut(rest_a, 1).is_some_and(|r| r == rest_b)
        || cut(rest_b, 1).is_some_and(|r| r == rest_a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EndV1, start_time};

    struct Temp(PathBuf);

    impl Temp {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("mimeo-root-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }
        fn root(&self) -> Root {
            Root::at(&self.0).unwrap()
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn record(name: &str) -> RecordV1 {
        let pid = std::process::id() as i32;
        RecordV1 {
            version: 1,
            name: name.into(),
            pid,
            pid_start: start_time(pid).unwrap(),
            created: 5,
            guest: "debian".into(),
            cpus: 1,
            memory: 1 << 28,
            arguments: vec!["debian".into()],
            directory: "/".into(),
            remove: false,
            vsock: None,
        }
    }

    #[test]
    fn a_name_is_claimed_once_and_free_after_its_process() {
        let t = Temp::new("claim");
        let root = t.root();
        let folder = root.claim(&record("web")).unwrap();
        assert!(matches!(
            root.claim(&record("web")),
            Err(ControlError::InUse(_))
        ));
        assert!(matches!(root.remove("web"), Err(ControlError::Running(_))));
        let seen = root.find("web").unwrap();
        assert!(seen.running() && seen.end().is_none());
        assert_eq!(seen.record(), Some(record("web")));
        folder.end(3, "reset");
        drop(folder);
        let seen = root.find("web").unwrap();
        assert!(!seen.running());
        let EndV1 { status, how, .. } = seen.end().unwrap();
        assert_eq!((status, how.as_str()), (3, "reset"));
        // As after a kill -9: everything is still there.
        fs::write(seen.dir().join("control"), "stale").unwrap();
        let again = root.claim(&record("web")).unwrap();
        assert!(!again.dir().join("control").exists());
        drop(again);
        root.remove("web").unwrap();
        assert!(matches!(
            root.find("web"),
            Err(ControlError::Unknown { .. })
        ));
    }

    #[test]
    fn what_nobody_wants_is_swept() {
        let t = Temp::new("sweep");
        let root = t.root();
        let running = root
            .claim(&RecordV1 {
                remove: true,
                ..record("runs")
            })
            .unwrap();
        drop(
            root.claim(&RecordV1 {
                remove: true,
                ..record("gone")
            })
            .unwrap(),
        );
        drop(root.claim(&record("kept")).unwrap());
        // Its process was killed between making the folder and saying what it is.
        fs::create_dir(root.dir().join("half")).unwrap();
        assert_eq!(t.root().names(), ["kept", "runs"]);
        drop(running);
    }

    #[test]
    fn others_may_not_write_there() {
        let t = Temp::new("mode");
        let root = t.root();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(root.dir()), 0o700);
        let folder = root.claim(&record("web")).unwrap();
        assert_eq!(mode(folder.dir()), 0o700);
        fs::set_permissions(root.dir(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Root::at(&t.0), Err(ControlError::NotOurs(_))));
    }

    #[test]
    fn near_names() {
        assert!(alike("web", "wib") && alike("web", "we") && alike("we", "web"));
        assert!(!alike("web", "db") && !alike("web", "w"));
        let t = Temp::new("near");
        let root = t.root();
        let _folder = root.claim(&record("web")).unwrap();
        let error = root.find("wep").unwrap_err().to_string();
        assert!(
            error.contains("no machine wep (did you mean web?)"),
            "{error}"
        );
    }
}
