//! The text that nobody has read yet, bounded.

/// Text from the console with escape sequences removed. What was read is gone: it can never match again.
#[derive(Debug)]
pub(crate) struct ScanBuffer {
    data: Vec<u8>,
    /// Where the unread text starts in `data`.
    read: usize,
    /// Bytes that were given up unread since they were last asked for.
    lost: usize,
    limit: usize,
}

impl ScanBuffer {
    pub(crate) fn new(limit: usize) -> Self {
        ScanBuffer { data: Vec::new(), read: 0, lost: 0, limit: limit.max(4096) }
    }

    /// Appends; gives up the oldest unread text when there is too much of it.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
        let unread = self.data.len() - self.read;
        if unread > self.limit {
            // Half at a time: to give up a little with each chunk would copy the whole each time.
            let give_up = unread - self.limit / 2;
            self.read += give_up;
            self.lost += give_up;
        }
        if self.read > self.limit {
            self.data.drain(..self.read);
            self.read = 0;
        }
    }

    /// The unread text.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.data[self.read..]
    }

    /// Marks the first `n` bytes of the unread text as read.
    pub(crate) fn consume(&mut self, n: usize) {
        self.read = (self.read + n).min(self.data.len());
        if self.read == self.data.len() {
            self.data.clear();
            self.read = 0;
        }
    }

    /// How many bytes were given up since the last call.
    pub(crate) fn take_lost(&mut self) -> usize {
        std::mem::take(&mut self.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_bounded_and_counts_what_it_loses(
            steps in proptest::collection::vec((0usize..5000, 0usize..3000), 1..30),
        ) {
            let mut buffer = ScanBuffer::new(4096);
            let (mut pushed, mut accounted) = (0, 0);
            for (push, consume) in steps {
                let bytes: Vec<u8> = (0..push).map(|i| ((pushed + i) % 251) as u8).collect();
                buffer.push(&bytes);
                pushed += push;
                accounted += buffer.take_lost();
                prop_assert!(buffer.unread().len() <= 4096);
                if let Some(first) = buffer.unread().first() {
                    prop_assert_eq!(usize::from(*first), accounted % 251);
                }
                let n = consume.min(buffer.unread().len());
                buffer.consume(n);
                accounted += n;
                prop_assert_eq!(accounted + buffer.unread().len(), pushed);
                prop_assert!(buffer.data.len() <= 4 * 4096 + 5000);
            }
        }
    }
}
