//! Nodemesh's node agent. ARCHITECTURE.md has the rooms.
pub mod kernel;
mod sys;
pub mod netns;
