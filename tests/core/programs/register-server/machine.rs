//! Registers over the log: the last value written to each key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vp_coordinator::raft::Machine;

/// Values by key, shared with the service that reads them.
pub type Registers = Arc<Mutex<BTreeMap<String, String>>>;

/// A write as the log carries it.
#[derive(Serialize, Deserialize)]
pub struct Write {
    pub key: String,
    pub value: String,
}

/// The machine.
#[derive(Default)]
pub struct RegisterMachine {
    registers: Registers,
}

impl RegisterMachine {
    /// The registers it writes to.
    pub fn registers(&self) -> Registers {
        self.registers.clone()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not a map of registers")]
pub struct NotRegisters(#[from] serde_json::Error);

impl Machine for RegisterMachine {
    type Error = NotRegisters;

    fn apply(&mut self, _: u64, command: &[u8]) -> Vec<u8> {
        if let Ok(Write { key, value }) = serde_json::from_slice(command) {
            self.registers.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value);
        }
        Vec::new()
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&*self.registers.lock().unwrap_or_else(PoisonError::into_inner)).unwrap_or_default()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), NotRegisters> {
        let registers = serde_json::from_slice(bytes)?;
        *self.registers.lock().unwrap_or_else(PoisonError::into_inner) = registers;
        Ok(())
    }
}
