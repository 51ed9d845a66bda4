//! One command in one fresh guest.
