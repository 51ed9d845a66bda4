//! Where a container image is.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};

/// What begins the value of `rootfs` where it is a container image and no directory.
pub const CONTAINER_PREFIX: &str = "container:";

/// What begins the name of an image that is on disk, with whoever writes it so. What is there is found out by a look at it.
const ON_DISK: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

/// A container image, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    /// An engine has it under this name.
    Engine(String),
    /// It is on disk: a layout, or an archive. A tag may be behind the path, after a colon.
    Path(PathBuf),
}

impl ImageRef {
    /// Reads one: a path if it begins with `/`, `./` or `../`, or as it is written elsewhere (`oci:`, `oci-archive:`, `docker-archive:`), else a name that
    /// an engine knows. Paths are below `dir`.
    #[must_use]
    pub fn parse(text: &str, dir: &Path) -> Self {
        let written = ON_DISK.iter().find_map(|prefix| text.strip_prefix(prefix));
        let is_path = ["/", "./", "../"].iter().any(|begin| text.starts_with(begin)) || matches!(text, "." | "..");
        match written.or(is_path.then_some(text)) {
            Some(path) => Self::Path(dir.join(path)),
            None => Self::Engine(text.to_owned()),
        }
    }

    /// That of the value of `rootfs`, if it is no directory.
    #[must_use]
    pub fn of_rootfs(value: &Path, dir: &Path) -> Option<Self> {
        Some(Self::parse(value.to_str()?.strip_prefix(CONTAINER_PREFIX)?, dir))
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(name) => f.write_str(name),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

impl Serialize for ImageRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_told_from_a_name() {
        let parse = |text| ImageRef::parse(text, Path::new("/d"));
        for name in ["debian:13", "docker.io/library/debian", "localhost/box:1", "sha256:aa", "a.tar"] {
            assert_eq!(parse(name), ImageRef::Engine(name.into()));
        }
        for (text, path) in [
            ("./box", "/d/./box"),
            ("../box:1", "/d/../box:1"),
            ("/srv/box.tar", "/srv/box.tar"),
            ("oci:box:1", "/d/box:1"),
            ("docker-archive:box.tar", "/d/box.tar"),
            ("oci-archive:/box.tar", "/box.tar"),
        ] {
            assert_eq!(parse(text), ImageRef::Path(path.into()));
        }
        let of_rootfs = |value: &str| ImageRef::of_rootfs(Path::new(value), Path::new("/d"));
        assert_eq!(of_rootfs("container:box"), Some(ImageRef::Engine("box".into())));
        assert_eq!(of_rootfs("./container:box"), None);
        assert_eq!(of_rootfs("/srv/root"), None);
    }
}
