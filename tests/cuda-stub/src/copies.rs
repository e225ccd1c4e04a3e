//! Copies and fills: no byte moves, and a synchronous copy waits for the work before it.

use crate::codes::{Code, SUCCESS};
use crate::driver::enter_device;

pub extern "C" fn host_to_device(_to: u64, _from: u64, _bytes: usize) -> Code {
    wait("cuMemcpyHtoD_v2")
}

pub extern "C" fn device_to_host(_to: u64, _from: u64, _bytes: usize) -> Code {
    wait("cuMemcpyDtoH_v2")
}

pub extern "C" fn device_to_device(_to: u64, _from: u64, _bytes: usize) -> Code {
    wait("cuMemcpyDtoD_v2")
}

pub extern "C" fn any(_to: u64, _from: u64, _bytes: usize) -> Code {
    wait("cuMemcpy")
}

pub extern "C" fn peer(
    _to: u64,
    _to_context: u64,
    _from: u64,
    _from_context: u64,
    _bytes: usize,
) -> Code {
    wait("cuMemcpyPeer")
}

pub extern "C" fn host_to_device_async(_to: u64, _from: u64, _bytes: usize, _stream: u64) -> Code {
    queue("cuMemcpyHtoDAsync_v2")
}

pub extern "C" fn device_to_host_async(_to: u64, _from: u64, _bytes: usize, _stream: u64) -> Code {
    queue("cuMemcpyDtoHAsync_v2")
}

pub extern "C" fn device_to_device_async(
    _to: u64,
    _from: u64,
    _bytes: usize,
    _stream: u64,
) -> Code {
    queue("cuMemcpyDtoDAsync_v2")
}

pub extern "C" fn any_async(_to: u64, _from: u64, _bytes: usize, _stream: u64) -> Code {
    queue("cuMemcpyAsync")
}

pub extern "C" fn peer_async(
    _to: u64,
    _to_context: u64,
    _from: u64,
    _from_context: u64,
    _bytes: usize,
    _stream: u64,
) -> Code {
    queue("cuMemcpyPeerAsync")
}

pub extern "C" fn set_d8(_at: u64, _value: u8, _count: usize) -> Code {
    queue("cuMemsetD8_v2")
}

pub extern "C" fn set_d8_async(_at: u64, _value: u8, _count: usize, _stream: u64) -> Code {
    queue("cuMemsetD8Async")
}

pub extern "C" fn set_d16(_at: u64, _value: u16, _count: usize) -> Code {
    queue("cuMemsetD16_v2")
}

pub extern "C" fn set_d16_async(_at: u64, _value: u16, _count: usize, _stream: u64) -> Code {
    queue("cuMemsetD16Async")
}

pub extern "C" fn set_d32(_at: u64, _value: u32, _count: usize) -> Code {
    queue("cuMemsetD32_v2")
}

pub extern "C" fn set_d32_async(_at: u64, _value: u32, _count: usize, _stream: u64) -> Code {
    queue("cuMemsetD32Async")
}

pub(crate) fn wait(call: &str) -> Code {
    match enter_device(call) {
        Ok((driver, device)) => {
            driver.node.synchronize(driver.seat, device);
            SUCCESS
        }
        Err(code) => code,
    }
}

pub(crate) fn queue(call: &str) -> Code {
    enter_device(call).map_or_else(|code| code, |_| SUCCESS)
}
