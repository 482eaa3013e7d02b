//! Properties of the whole wire, from outside.

mod requests;
mod round_trip;
mod totality;
