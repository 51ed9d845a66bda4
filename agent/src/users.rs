//! Users and groups, from `/etc/passwd` and `/etc/group`: a static program has no other way to ask.

use std::fs;

/// What a command runs as.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, with `gid`.
    pub(crate) groups: Vec<u32>,
    pub(crate) name: String,
    pub(crate) home: String,
    pub(crate) shell: String,
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (_password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?);
        let (_gecos, home) = (fields.next()?, fields.next()?);
        Some(User {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home,
            shell: fields.next().unwrap_or_default(),
        })
    })
}

/// Name, number and members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

/// Finds `NAME`, `UID`, or either with `:GROUP` or `:GID`; with a group alone it is root with that group (docker-run(1), `--user`).
pub(crate) fn find(wanted: &str) -> Result<Identity, String> {
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let group = fs::read("/etc/group").unwrap_or_default();
    find_in(wanted, &String::from_utf8_lossy(&passwd), &String::from_utf8_lossy(&group))
}

fn find_in(wanted: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match wanted.split_once(':') {
        // As engines have it for an image's user: of two parts each may be empty, and nobody is root.
        Some((user, group)) => {
            (if user.is_empty() { "0" } else { user }, Some(group).filter(|group| !group.is_empty()))
        }
        None => (wanted, None),
    };
    let number: Option<u32> = user.parse().ok();
    // A name of digits is a name first, as for chown.
    let known = users(passwd)
        .find(|known| known.name == user)
        .or_else(|| users(passwd).find(|known| Some(known.uid) == number));
    let gid = match wanted_group {
        None => None,
        Some(wanted) => Some(
            groups(group)
                .find(|(name, ..)| *name == wanted)
                .map(|(_, gid, _)| gid)
                .or_else(|| wanted.parse().ok())
                .ok_or_else(|| format!("find group {wanted:?} in /etc/group"))?,
        ),
    };
    let Some(known) = known else {
        let uid = number.ok_or_else(|| format!("find user {user:?} in /etc/passwd"))?;
        // Not group 0, which may do much.
        let gid = gid.unwrap_or(uid);
        return Ok(Identity {
            uid,
            gid,
            groups: vec![gid],
            name: user.to_owned(),
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
        });
    };
    let own = gid.unwrap_or(known.gid);
    let mut member_of = vec![own];
    if wanted_group.is_none() {
        member_of.extend(
            groups(group)
                .filter(|(_, gid, members)| *gid != own && members.split(',').any(|member| member == known.name))
                .map(|(_, gid, _)| gid),
        );
    }
    let or = |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
    Ok(Identity {
        uid: known.uid,
        gid: own,
        groups: member_of,
        name: known.name.to_owned(),
        home: or(known.home, "/"),
        shell: or(known.shell, "/bin/sh"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nbroken\nbob:x:1000:1001:Bob,,,:/home/bob:\n42:x:7:7::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nbob:x:1001:\naudio:x:29:alice,bob\nvideo:x:44:bobby\n";

    fn ids(wanted: &str) -> Result<(u32, u32, Vec<u32>), String> {
        find_in(wanted, PASSWD, GROUP).map(|found| (found.uid, found.gid, found.groups))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(ids("bob"), Ok((1000, 1001, vec![1001, 29])));
        assert_eq!(ids("1000"), Ok((1000, 1001, vec![1001, 29])));
        assert_eq!(ids("root"), Ok((0, 0, vec![0])));
        assert_eq!(ids("42"), Ok((7, 7, vec![7])));
        assert_eq!(ids("4711"), Ok((4711, 4711, vec![4711])));
        assert_eq!(ids("bob:audio"), Ok((1000, 29, vec![29])));
        assert_eq!(ids("5:6"), Ok((5, 6, vec![6])));
        assert_eq!(ids(":5"), Ok((0, 5, vec![5])));
        assert_eq!(ids(":audio"), Ok((0, 29, vec![29])));
        assert_eq!((ids("bob:"), ids(":")), (ids("bob"), ids("root")));
        assert_eq!(find_in(":5", "", "").map(|found| (found.uid, found.gid)), Ok((0, 5)), "without /etc/passwd");
        assert!(ids(":nogroup").unwrap_err().contains("\"nogroup\""));
        assert!(ids("nobody").unwrap_err().contains("\"nobody\""));
        assert!(ids("bob:nogroup").unwrap_err().contains("\"nogroup\""));
        assert!(ids("").is_err());
    }

    #[test]
    fn an_empty_shell_is_sh() {
        assert_eq!(find_in("bob", PASSWD, GROUP).unwrap().shell, "/bin/sh");
    }
}
