//! The shares that come and go on a disk, as our agent has them: unpacked into the scratch directory, and packed again.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use belljar_proto::message::{DiskContent, Mount, MountMode, Returned};
use belljar_share_disk::{
    device::{RangeReader, RangeWriter},
    layout::{BLOCK, CONTENT_AT, Header, MAX_ARCHIVE, RETURN_AT, SERIAL},
    pack::{Manifest, look, pack},
    tar::{Entry, Kind, Writer},
    unpack::{Rules, Target, unpack},
};

use crate::guest::Guest;

/// Guest path and host directory of each mount.
type Mounts = Vec<(Vec<u8>, PathBuf)>;

/// What was unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    disk: fs::File,
    shares: Vec<Share>,
}

#[derive(Debug)]
struct Share {
    name: String,
    dir: PathBuf,
    /// What was in it when Belljar knew all of it last, if it is to know.
    known: Option<Manifest>,
}

impl Unpacked {
    /// Unpacks what is on the machine's disk; gives where each mount is then.
    pub(crate) fn new(guest: &Guest, content: &DiskContent, mounts: &[Mount]) -> Result<(Self, Mounts), String> {
        let said = |error: io::Error| error.to_string();
        let path = guest.share_disk.as_ref().ok_or_else(|| format!("the machine has no disk {SERIAL}"))?;
        let disk = fs::File::options().read(true).write(true).open(path).map_err(said)?;
        let mut block = [0; BLOCK];
        rustix::io::pread(&disk, &mut block, 0).map_err(|e| e.to_string())?;
        let header = Header::of_block(&block).ok_or("the disk of shares has no header")?;
        if header.id != content.id {
            return Err("the disk of shares has another content".to_owned());
        }
        let top = guest.root.join("disk");
        let _ = fs::remove_dir_all(&top);
        let mut shares = Vec::new();
        for mount in mounts {
            let dir = top.join(&mount.name);
            fs::create_dir_all(&dir).map_err(said)?;
            shares.push(Share { name: mount.name.clone(), dir, known: None });
        }
        let roots: io::Result<Vec<OwnedFd>> =
            shares.iter().map(|share| Ok(fs::File::open(&share.dir)?.into())).collect();
        let roots = roots.map_err(said)?;
        let mut targets: Vec<Target<'_>> =
            shares.iter().zip(&roots).map(|(share, root)| Target::fresh(&share.name, root)).collect();
        let mut archive = RangeReader::new(disk.as_fd(), CONTENT_AT, header.content);
        // Not with owners, which only root could give.
        unpack(&mut archive, &mut targets, Rules::Plain).map_err(|error| error.to_string())?;
        if archive.finish().map_err(said)? != header.crc {
            return Err("the archive on the disk of shares is damaged".to_owned());
        }
        for (mount, share) in mounts.iter().zip(&mut shares).filter(|(mount, _)| mount.mode == MountMode::ReadWrite) {
            let root = fs::File::open(&share.dir).map_err(said)?;
            share.known = Some(look(&root).map_err(|error| format!("{}: {error}", mount.path))?);
        }
        let places = mounts.iter().zip(&shares);
        let places = places.map(|(mount, share)| (mount.path.clone().into_bytes(), share.dir.clone())).collect();
        Ok((Self { disk, shares }, places))
    }

    /// Where something in a share is in the scratch directory.
    pub(crate) fn make_directory(&self, mounts: &[(Vec<u8>, PathBuf)], path: &str) {
        for (at, dir) in mounts {
            if let Some(rest) = path.as_bytes().strip_prefix(at.as_slice()) {
                let rest = String::from_utf8_lossy(rest).trim_start_matches('/').to_owned();
                let _ = fs::create_dir_all(dir.join(rest));
            }
        }
    }

    /// Packs what was changed, in one of the ways in which an agent may do it.
    pub(crate) fn bring_back(&mut self, how: &str) -> io::Result<Option<Returned>> {
        let mut archive = Writer::new(RangeWriter::new(self.disk.as_fd(), RETURN_AT, MAX_ARCHIVE));
        for share in &mut self.shares {
            let Some(known) = &mut share.known else { continue };
            let packed = pack(&mut archive, &share.name, fs::File::open(&share.dir)?, Some(known))?;
            *known = packed.manifest;
        }
        let forged =
            |path: &str, kind, mode| Entry { path: path.into(), kind, mode, owner: (0, 0), mtime: (0, 0), size: 0 };
        match how {
            "forged" => {
                archive.entry(&forged("belljar-out/../../forged", Kind::File, 0o644))?;
            }
            "link" => {
                archive.entry(&forged("belljar-out/away", Kind::Symlink("/tmp".into()), 0o777))?;
                archive.entry(&forged("belljar-out/away/forged", Kind::File, 0o644))?;
            }
            "set-uid" => archive.entry(&forged("belljar-out/root", Kind::File, 0o6755))?,
            _ => {}
        }
        let (bytes, crc) = archive.end()?.finish()?;
        Ok(match how {
            "silent" => None,
            "damaged" => Some(Returned { bytes, crc: crc ^ 1, left_out: Vec::new() }),
            "cut" => {
                let bytes = bytes - 1024;
                let crc = RangeReader::new(self.disk.as_fd(), RETURN_AT, bytes).finish()?;
                Some(Returned { bytes, crc, left_out: Vec::new() })
            }
            "much" => Some(Returned { bytes: u64::MAX, crc, left_out: Vec::new() }),
            _ => Some(Returned { bytes, crc, left_out: vec!["a socket\x1b[31m: x".to_owned()] })
                .map(|r| if how == "noted" { r } else { Returned { left_out: Vec::new(), ..r } }),
        })
    }
}
