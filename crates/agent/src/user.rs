//! Who runs a command: passwd(5) and group(5).

use std::fs;
use std::io;

/// Where commands are looked for.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A user as a process knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// The user that `wanted` means: `USER` or `USER:GROUP`, each a name or a number; empty means root.
pub fn find(wanted: &[u8]) -> io::Result<User> {
    let read = |path| {
        fs::read(path)
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    };
    let wanted = String::from_utf8_lossy(wanted);
    select(&wanted, &read("/etc/passwd"), &read("/etc/group"))
}

fn select(wanted: &str, passwd: &str, group: &str) -> io::Result<User> {
    let unknown = |what: &str, name: &str| {
        let text = format!("the guest has no {what} {name}");
        io::Error::new(io::ErrorKind::NotFound, text)
    };
    let (name, own_group) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (wanted, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number: Option<u32> = name.parse().ok();
    let mut user = passwd
        .lines()
        .filter_map(entry)
        .find(|u| u.name == name || Some(u.uid) == number)
        .or_else(|| {
            // A number needs no entry.
            number.map(|uid| User {
                name: uid.to_string(),
                uid,
                gid: if uid == 0 { 0 } else { uid },
                groups: Vec::new(),
                home: if uid == 0 { "/root" } else { "/" }.to_owned(),
            })
        })
        .ok_or_else(|| unknown("user", name))?;
    let member = |line: &str| {
        let mut fields = line.split(':');
        let gid = fields.nth(2)?.parse().ok()?;
        let members = fields.next()?;
        members.split(',').any(|m| m == user.name).then_some(gid)
    };
    user.groups = group.lines().filter_map(member).collect();
    if let Some(wanted) = own_group {
        let named = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid: u32 = fields.nth(1)?.parse().ok()?;
            (name == wanted).then_some(gid)
        };
        let found = group
            .lines()
            .find_map(named)
            .or_else(|| wanted.parse().ok());
        user.gid = found.ok_or_else(|| unknown("group", wanted))?;
        user.groups.clear();
    }
    Ok(user)
}

/// `name:password:uid:gid:comment:home:shell`.
fn entry(line: &str) -> Option<User> {
    let f: Vec<&str> = line.split(':').collect();
    Some(User {
        name: (*f.first()?).to_owned(),
        uid: f.get(2)?.parse().ok()?,
        gid: f.get(3)?.parse().ok()?,
        groups: Vec::new(),
        home: (*f.get(5)?).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/bash\nbroken\n";
    const GROUP: &str = "root:x:0:\nann:x:1001:\nwheel:x:10:bob,ann\ndisk:x:6:annabel\n";

    #[test]
    fn names_and_numbers() {
        let get = |w: &str| select(w, PASSWD, GROUP);
        let ann = get("ann").unwrap();
        assert_eq!(
            (ann.uid, ann.gid, ann.home.as_str()),
            (1000, 1001, "/home/ann")
        );
        assert_eq!(ann.groups, [10]);
        assert_eq!(get("1000").unwrap(), ann);
        assert_eq!(get("").unwrap().home, "/root");
        assert_eq!(get("ann:wheel").unwrap().gid, 10);
        assert_eq!(get("77:88").unwrap().gid, 88);
        assert_eq!(get("77").unwrap().home, "/");
        assert_eq!(select("", "", "").unwrap().home, "/root");
        assert!(get("nobody").is_err() && get("ann:nogroup").is_err());
    }
}
