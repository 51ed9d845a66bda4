//! Turns a request or a plan into events.
