//! Belljar's vocabulary: verdicts, outcomes, events, exit codes.
