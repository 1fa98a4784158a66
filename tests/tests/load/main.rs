//! What measures or takes the whole machine. No two modules run at once: `BY_THEMSELVES` in
//! xtask/src/runner.rs.

mod attacks;
mod kills;
mod races;
mod scale;
mod soak;
mod under_load;
