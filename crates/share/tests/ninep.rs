//! A client speaks 9P2000.L to a server over a real folder, kindly and otherwise.

use mimeo_share::{NineP, Tree};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

const ENOENT: u32 = 2;
const EBADF: u32 = 9;
const EINVAL: u32 = 22;
const EROFS: u32 = 30;
const EPERM: u32 = 1;
const ELOOP: u32 = 40;

struct Client(NineP);

fn s(v: &[u8]) -> Vec<u8> {
    [&(v.len() as u16).to_le_bytes()[..], v].concat()
}
fn d(v: u32) -> Vec<u8> {
    v.to_le_bytes().to_vec()
}
fn q(v: u64) -> Vec<u8> {
    v.to_le_bytes().to_vec()
}

impl Client {
    fn new(root: &Path, read_only: bool) -> Self {
        let mut c = Self(NineP::new(Tree::open(root, read_only).unwrap()));
        let v = c.call(100, &[d(65536), s(b"9P2000.L")]).unwrap();
        assert_eq!(&v[4..], s(b"9P2000.L"));
        c.call(104, &[d(0), d(u32::MAX), s(b"root"), s(b""), d(0)])
            .unwrap();
        c
    }

    /// Sends a message; gives the reply's body, or the errno.
    fn call(&mut self, kind: u8, fields: &[Vec<u8>]) -> Result<Vec<u8>, u32> {
        let body = fields.concat();
        let mut m = ((7 + body.len()) as u32).to_le_bytes().to_vec();
        m.push(kind);
        m.extend_from_slice(&5u16.to_le_bytes());
        m.extend_from_slice(&body);
        let r = self.0.handle(&m);
        assert_eq!(
            u32::from_le_bytes(r[..4].try_into().unwrap()) as usize,
            r.len()
        );
        assert_eq!(&r[5..7], &5u16.to_le_bytes());
        if r[4] == 7 {
            return Err(u32::from_le_bytes(r[7..11].try_into().unwrap()));
        }
        assert_eq!(r[4], kind + 1);
        Ok(r[7..].to_vec())
    }

    /// Walks from the root to `to`; gives the number of names walked.
    fn walk(&mut self, to: u32, names: &[&[u8]]) -> Result<u16, u32> {
        let mut f = vec![d(0), d(to), (names.len() as u16).to_le_bytes().to_vec()];
        f.extend(names.iter().map(|n| s(n)));
        let r = self.call(110, &f)?;
        Ok(u16::from_le_bytes(r[..2].try_into().unwrap()))
    }

    fn read(&mut self, fid: u32, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        let r = self.call(116, &[d(fid), q(offset), d(count)])?;
        Ok(r[4..].to_vec())
    }

    fn contents(&mut self, fid: u32, names: &[&[u8]]) -> Result<Vec<u8>, u32> {
        assert_eq!(self.walk(fid, names)? as usize, names.len());
        let opened = self.call(12, &[d(fid), d(0)]);
        let data = opened.and_then(|_| self.read(fid, 0, 4096));
        self.call(120, &[d(fid)]).unwrap();
        data
    }

    fn names(&mut self, fid: u32) -> Vec<String> {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let r = self.call(40, &[d(fid), q(offset), d(200)]).unwrap();
            let mut at = &r[4..];
            if at.is_empty() {
                names.sort();
                return names;
            }
            while !at.is_empty() {
                offset = u64::from_le_bytes(at[13..21].try_into().unwrap());
                let n = u16::from_le_bytes(at[22..24].try_into().unwrap()) as usize;
                names.push(String::from_utf8(at[24..24 + n].to_vec()).unwrap());
                at = &at[24 + n..];
            }
        }
    }
}

/// A folder `share` with a secret beside it.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("share/sub/deep")).unwrap();
    fs::write(dir.path().join("secret"), b"secret").unwrap();
    fs::write(dir.path().join("share/a"), b"contents of a").unwrap();
    fs::write(dir.path().join("share/sub/b"), b"b").unwrap();
    dir
}

#[test]
fn files_are_read_written_created_and_listed() {
    let dir = folder();
    let root = dir.path().join("share");
    let mut c = Client::new(&root, false);
    assert_eq!(c.contents(1, &[b"a"]).unwrap(), b"contents of a");
    assert_eq!(c.contents(1, &[b"sub", b"b"]).unwrap(), b"b");
    assert_eq!(c.walk(1, &[b"missing"]), Err(ENOENT));
    assert_eq!(c.walk(1, &[b"sub", b"missing"]), Ok(1), "a short walk");
    assert_eq!(
        c.call(24, &[d(1), q(0)]),
        Err(EBADF),
        "a short walk makes no fid"
    );

    c.walk(2, &[b"sub"]).unwrap();
    // O_CREAT is implied, O_RDWR | O_EXCL asked for.
    c.call(14, &[d(2), s(b"new"), d(0o202), d(0o4755), d(0)])
        .unwrap();
    assert_eq!(
        c.call(118, &[d(2), q(3), d(4), b"data".to_vec()]).unwrap(),
        d(4)
    );
    assert_eq!(c.read(2, 0, 100).unwrap(), b"\0\0\0data");
    let made = fs::metadata(root.join("sub/new")).unwrap();
    assert_eq!(made.permissions().mode() & 0o7000, 0, "no set-id bits");

    c.walk(3, &[b"sub"]).unwrap();
    c.call(12, &[d(3), d(0o200_000)]).unwrap();
    assert_eq!(c.names(3), [".", "..", "b", "deep", "new"]);
}

#[test]
fn a_rename_carries_fids_along() {
    let dir = folder();
    let root = dir.path().join("share");
    let mut c = Client::new(&root, false);
    c.walk(1, &[b"sub", b"b"]).unwrap();
    c.call(74, &[d(0), s(b"sub"), d(0), s(b"moved")]).unwrap();
    c.call(12, &[d(1), d(0)]).unwrap();
    assert_eq!(c.read(1, 0, 9).unwrap(), b"b");
    c.call(76, &[d(0), s(b"a"), d(0)]).unwrap();
    assert!(!root.join("a").exists() && root.join("moved/b").exists());
}

#[test]
fn setattr_changes_size_mode_and_time() {
    let dir = folder();
    let path = dir.path().join("share/a");
    let mut c = Client::new(&dir.path().join("share"), false);
    c.walk(1, &[b"a"]).unwrap();
    let valid = 1 | 8 | 0x20 | 0x100;
    let fields = [
        d(1),
        d(valid),
        d(0o6640),
        d(0),
        d(0),
        q(4),
        q(7),
        q(8),
        q(1000),
        q(5),
    ];
    c.call(26, &fields).unwrap();
    let m = fs::metadata(&path).unwrap();
    assert_eq!((m.len(), m.permissions().mode() & 0o7777), (4, 0o640));
    let since = m
        .modified()
        .unwrap()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!((since.as_secs(), since.subsec_nanos()), (1000, 5));
}

#[test]
fn nothing_leads_out() {
    let dir = folder();
    let root = dir.path().join("share");
    symlink("../secret", root.join("out")).unwrap();
    symlink(dir.path(), root.join("sub/abs")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    let mut c = Client::new(&root, false);
    // `..` stays at the root, however often.
    assert_eq!(c.walk(1, &[b"..", b"..", b"secret"]), Ok(2));
    assert_eq!(c.walk(1, &[b"sub", b"..", b"..", b"a"]), Ok(4));
    c.call(120, &[d(1)]).unwrap();
    // Links are links: they are read, never followed.
    assert_eq!(c.contents(1, &[b"out"]), Err(ELOOP));
    assert_ne!(c.walk(1, &[b"sub", b"abs", b"secret"]), Ok(3));
    assert_ne!(c.walk(1, &[b"magic", b"etc"]), Ok(2));
    c.walk(2, &[b"out"]).unwrap();
    assert_eq!(c.call(22, &[d(2)]).unwrap(), s(b"../secret"));
    for name in [&b"sub/../../secret"[..], b"/etc", b"..\0", b""] {
        assert_eq!(c.walk(3, &[name]), Err(EINVAL), "{name:?}");
    }
    // A folder that becomes a link after it was walked to.
    c.walk(4, &[b"sub", b"b"]).unwrap();
    fs::rename(root.join("sub"), root.join("was")).unwrap();
    symlink(dir.path(), root.join("sub")).unwrap();
    fs::write(dir.path().join("b"), b"outside").unwrap();
    assert!(c.call(12, &[d(4), d(0)]).is_err());
    // Names that would be made outside.
    assert_eq!(c.call(72, &[d(0), s(b"../x"), d(0o755), d(0)]), Err(EINVAL));
    assert_eq!(
        c.call(14, &[d(0), s(b"../x"), d(1), d(0o644), d(0)]),
        Err(EINVAL)
    );
    assert_eq!(c.call(74, &[d(0), s(b"a"), d(0), s(b"../a")]), Err(EINVAL));
    let device = [d(0), s(b"disk"), d(0o060_660), d(8), d(0), d(0)];
    assert_eq!(c.call(18, &device), Err(EPERM));
}

#[test]
fn a_read_only_share_changes_nothing() {
    let dir = folder();
    let mut c = Client::new(&dir.path().join("share"), true);
    c.walk(1, &[b"a"]).unwrap();
    assert_eq!(c.call(12, &[d(1), d(1)]), Err(EROFS));
    assert_eq!(c.call(12, &[d(1), d(0o1000)]), Err(EROFS), "truncation");
    assert_eq!(
        c.call(14, &[d(0), s(b"x"), d(1), d(0o644), d(0)]),
        Err(EROFS)
    );
    assert_eq!(c.call(76, &[d(0), s(b"a"), d(0)]), Err(EROFS));
    let chmod = [
        d(1),
        d(1),
        d(0o777),
        d(0),
        d(0),
        q(0),
        q(0),
        q(0),
        q(0),
        q(0),
    ];
    assert_eq!(c.call(26, &chmod), Err(EROFS));
    assert_eq!(c.contents(2, &[b"a"]).unwrap(), b"contents of a");
}

#[test]
fn garbage_gets_an_answer_and_fids_are_bounded() {
    let dir = folder();
    let mut c = Client::new(&dir.path().join("share"), false);
    let mut seed = 1u64;
    for round in 0..20_000 {
        let mut m: Vec<u8> = (0..round % 40)
            .map(|_| {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(0x1405_7b7e_f767_814f);
                (seed >> 56) as u8
            })
            .collect();
        if m.len() >= 7 {
            let len = m.len() as u32;
            m[..4].copy_from_slice(&len.to_le_bytes());
            // Not the ones that change files by luck.
            if matches!(m[4], 14 | 16 | 18 | 20 | 26 | 72 | 74 | 76 | 118 | 122) {
                m[4] = 110;
            }
        }
        let r = c.0.handle(&m);
        assert!(r.len() >= 7 && u32::from_le_bytes(r[..4].try_into().unwrap()) as usize == r.len());
    }
    let mut c = Client::new(&dir.path().join("share"), false);
    let made = (1..6000)
        .take_while(|&fid| c.walk(fid, &[]).is_ok())
        .count();
    assert!(made > 500 && made < 4096, "{made}");
}
