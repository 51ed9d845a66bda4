//! What a container's processes leave in a directory of the host's, made plain files of whoever owns that directory: they may well be root on
//! the host too. In a machine the host sees to that.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use rustix::time::{ClockId, clock_gettime};

/// Set-user-ID and set-group-ID.
const SET_ID: u32 = 0o6000;
/// The user that stands for all that a user namespace does not know.
const NOBODY: u32 = 65_534;
/// What was changed so shortly before the container began may be taken for its own, in nanoseconds.
const SLACK: i128 = 20_000_000;

/// Gives what was made in `top` since the container began to the directory's owner, and takes its device nodes away. What was there before keeps its owner, for a
/// hard link is enough to have it changed, and it may have other names elsewhere. Neither has a set-user-ID bit afterwards, if it was changed at all.
/// What cannot be changed stays as it is.
pub(crate) fn make_plain(top: &Path) -> Result<(), String> {
    make_plain_since(top, container_began().unwrap_or(0) - SLACK)
}

fn make_plain_since(top: &Path, since: i128) -> Result<(), String> {
    let owner = fs::symlink_metadata(top).map_err(|error| format!("look at {}: {error}", top.display()))?;
    let mut left: Vec<PathBuf> = vec![top.to_owned()];
    while let Some(dir) = left.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(of) = fs::symlink_metadata(&path) else { continue };
            if of.dev() != owner.dev() {
                continue;
            }
            if i128::from(of.ctime()) * 1_000_000_000 + i128::from(of.ctime_nsec()) >= since {
                let is_new = born(&path).is_none_or(|born| born >= since);
                make_one_plain(&path, &of, is_new.then_some(&owner));
            }
            if of.is_dir() {
                left.push(path);
            }
        }
    }
    Ok(())
}

/// When a file was made, in nanoseconds since the epoch, if its file system knows.
fn born(path: &Path) -> Option<i128> {
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME).ok()?;
    let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    known.then(|| i128::from(stat.stx_btime.tv_sec) * 1_000_000_000 + i128::from(stat.stx_btime.tv_nsec))
}

/// `owner`: whose it is to be, if it is new.
fn make_one_plain(path: &Path, of: &fs::Metadata, owner: Option<&fs::Metadata>) {
    let kind = FileType::from_raw_mode(of.mode());
    if matches!(kind, FileType::BlockDevice | FileType::CharacterDevice) {
        if owner.is_some() {
            let _ = fs::remove_file(path);
        }
        return;
    }
    // Before it is given away, for that would be refused after it.
    if matches!(kind, FileType::RegularFile | FileType::Directory) && of.mode() & SET_ID != 0 {
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(of.mode() & 0o7777 & !SET_ID));
    }
    let given = owner.filter(|owner| (of.uid(), of.gid()) != (owner.uid(), owner.gid()) && owner.uid() != NOBODY);
    if let Some(owner) = given {
        let gid = (owner.gid() != NOBODY).then_some(owner.gid());
        let _ = lchown(path, Some(owner.uid()), gid);
    }
}

/// When the first process began, in nanoseconds since the epoch.
fn container_began() -> Option<i128> {
    let stat = fs::read_to_string("/proc/1/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: i128 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    // USER_HZ is 100 wherever Linux runs (proc(5)).
    let began = ticks * 10_000_000;
    let nanos = |clock| {
        let now = clock_gettime(clock);
        i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
    };
    Some(nanos(ClockId::Realtime) - nanos(ClockId::Boottime) + began)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_plain_and_the_rest_is_left_alone() {
        let dir = std::env::temp_dir().join(format!("belljar-plain-{}", std::process::id()));
        fs::create_dir_all(dir.join("sub")).unwrap();
        let mode = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap().mode() & 0o7777;
        for name in ["new", "sub/new"] {
            fs::write(dir.join(name), "").unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o4755)).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).unwrap();
        make_plain_since(&dir, i128::MAX).unwrap();
        assert_eq!(mode("new"), 0o4755, "it was there before");
        make_plain_since(&dir, 0).unwrap();
        assert_eq!((mode("new"), mode("sub/new")), (0o755, 0o755));
        assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new("/etc/passwd"));
        // A link to what was there before gives it to nobody. Only root has files of others.
        let others = dir.join("others");
        fs::write(&others, "").unwrap();
        if lchown(&others, Some(7), Some(7)).is_ok() && born(&others).is_some() {
            let began = born(&others).unwrap() + 50_000_000;
            std::thread::sleep(std::time::Duration::from_millis(120));
            fs::hard_link(&others, dir.join("again")).unwrap();
            fs::write(dir.join("of-now"), "").unwrap();
            lchown(dir.join("of-now"), Some(7), Some(7)).unwrap();
            make_plain_since(&dir, began).unwrap();
            let uid = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap().uid();
            assert_eq!((uid("others"), uid("of-now")), (7, uid("sub")));
        }
        fs::remove_dir_all(&dir).unwrap();
        assert!(make_plain_since(&dir, 0).is_err());
        assert!(container_began().unwrap() > 1_600_000_000_000_000_000);
    }
}
