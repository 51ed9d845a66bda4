//! What can be said of a request before anything is done.

use crate::wire::{Request, open};

/// The files that a request does something with, other than by a descriptor that the guest has, of those that it names.
pub(crate) fn needs(node: u64, request: &Request<'_>) -> impl Iterator<Item = u64> {
    let first = match request {
        Request::Init { .. }
        | Request::Destroy
        | Request::Forget(_)
        | Request::BatchForget(_)
        | Request::NotifyReply
        | Request::Write { .. }
        | Request::Release { .. }
        | Request::ReleaseDir { .. }
        | Request::Flush
        | Request::FAllocate { .. }
        | Request::CopyFileRange { .. }
        | Request::Other => None,
        _ => Some(node),
    };
    let second = match *request {
        Request::Rename { to, .. } => Some(to),
        Request::Link { node, .. } => Some(node),
        _ => None,
    };
    first.into_iter().chain(second)
}

/// Whether a request changes anything.
pub(crate) fn writes(request: &Request<'_>) -> bool {
    matches!(
        request,
        Request::SetAttr { .. }
            | Request::Symlink { .. }
            | Request::MkNod { .. }
            | Request::MkDir { .. }
            | Request::Unlink(_)
            | Request::RmDir(_)
            | Request::Rename { .. }
            | Request::Link { .. }
            | Request::Create { .. }
            | Request::TmpFile { .. }
            | Request::Write { .. }
            | Request::SetXAttr { .. }
            | Request::RemoveXAttr(_)
            | Request::FAllocate { .. }
            | Request::CopyFileRange { .. }
    ) || matches!(request, Request::Open { flags } if flags & (open::ACCESS | open::TRUNCATE) != 0)
}
