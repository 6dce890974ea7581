//! Simulation in virtual time.
