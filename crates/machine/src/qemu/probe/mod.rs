//! (the lead is writing this)
