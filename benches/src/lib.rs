//! Measurements with budgets.
