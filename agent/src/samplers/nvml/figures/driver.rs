//! The calls for figures, and nothing else: no judgement. They can block like every call.
#![expect(unsafe_code, reason = "the wrapper has no method for these, or none with a scope")]

use std::ffi::c_uint;

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use crate::model::figures::{FABRIC_FAILED, Figure};
use crate::samplers::nvml::answers::{Call, FieldSaid};
use crate::samplers::nvml::driver::handle;
use crate::samplers::nvml::figures::fields::{FIELDS, Field, one_for_each_figure};

type Answer = Result<Vec<(Figure, u64)>, NvmlError>;
type Question = fn(&Device<'_>) -> Answer;

/// Every question for figures but the one for fields.
pub(crate) const QUESTIONS: [(Call, Question); 8] = [
    (Call::Encoder, encoder),
    (Call::Decoder, decoder),
    (Call::Jpeg, jpeg),
    (Call::OpticalFlow, optical_flow),
    (Call::VideoClock, video_clock),
    (Call::Bar1, bar1),
    (Call::Fabric, fabric),
    (Call::AccountingMode, accounting_mode),
];

/// The fields that a device offers: all until it was asked once.
#[derive(Debug)]
pub(crate) struct Fields {
    offered: Vec<Field>,
    /// What each field said when it was asked last.
    said: Vec<FieldSaid>,
}

// === impl Fields ===

impl Fields {
    pub(crate) fn all() -> Self {
        Self { offered: FIELDS.to_vec(), said: Vec::new() }
    }

    pub(crate) fn said(&self) -> Vec<FieldSaid> {
        self.said.clone()
    }

    /// In one call. Each field has a code of its own; what a device does not offer is not asked
    /// again.
    pub(crate) fn ask(&mut self, device: &Device<'_>) -> Answer {
        self.said.clear();
        let symbol = nvml_sym(device.nvml().lib().nvmlDeviceGetFieldValues.as_ref())?;
        let scheme = device.nvml().field_id_scheme();
        let mut values: Vec<_> =
            self.offered.iter().map(|it| blank(it.number(scheme), it.scope)).collect();
        let count = i32::try_from(values.len()).expect("there are few fields");
        // SAFETY: nvml.h asks for as many structures as `count` says.
        nvml_try(unsafe { symbol(handle(device), count, values.as_mut_ptr()) })?;
        self.said = values.iter().filter_map(word).collect();
        if let Some(lost) = values.iter().find(|it| is_gone(it.nvmlReturn)) {
            nvml_try(lost.nvmlReturn)?;
        }
        let (mut found, mut offered) = (Vec::new(), Vec::new());
        for (field, value) in self.offered.iter().zip(&values) {
            if is_missing(value.nvmlReturn) {
                continue;
            }
            offered.push(*field);
            if value.nvmlReturn == sys::nvmlReturn_enum_NVML_SUCCESS {
                found.extend(number(value).map(|it| (*field, it)));
            }
        }
        self.offered = one_for_each_figure(&offered);
        if self.offered.is_empty() {
            return Err(NvmlError::NotSupported);
        }
        found.retain(|(field, _)| self.offered.contains(field));
        let in_unit = |(field, value): (Field, u64)| (field.figure, scaled(value, field.factor));
        Ok(found.into_iter().map(in_unit).collect())
    }
}

fn blank(id: u32, scope: u32) -> sys::nvmlFieldValue_t {
    sys::nvmlFieldValue_t {
        fieldId: id,
        scopeId: scope,
        timestamp: 0,
        latencyUsec: 0,
        valueType: sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
        // What a library that leaves a field out would leave here.
        nvmlReturn: sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
        value: sys::nvmlValue_t { ullVal: 0 },
    }
}

/// `None` where the value is of a type that is not read.
fn word(field: &sys::nvmlFieldValue_t) -> Option<FieldSaid> {
    let said = match field.nvmlReturn {
        sys::nvmlReturn_enum_NVML_SUCCESS => Ok(number(field)?),
        code => Err(code),
    };
    Some((field.fieldId, said))
}

/// "Not known" keeps all its bits, whatever its width.
fn scaled(value: u64, factor: u64) -> u64 {
    if value == u64::MAX { value } else { value.saturating_mul(factor) }
}

/// `None` for a value that is negative or not whole.
fn number(field: &sys::nvmlFieldValue_t) -> Option<u64> {
    let value = field.value;
    match field.valueType {
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT => {
            // SAFETY: the type says which member was written.
            let value = unsafe { value.uiVal };
            Some(if value == u32::MAX { u64::MAX } else { value.into() })
        }
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT => {
            // SAFETY: as above.
            u64::try_from(unsafe { value.siVal }).ok()
        }
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_SHORT => {
            // SAFETY: as above.
            Some(unsafe { value.usVal }.into())
        }
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG
        | sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG => {
            // SAFETY: as above; both are 64 bits wide here.
            Some(unsafe { value.ullVal })
        }
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_LONG_LONG => {
            // SAFETY: as above.
            u64::try_from(unsafe { value.sllVal }).ok()
        }
        _ => None,
    }
}

fn is_gone(code: sys::nvmlReturn_t) -> bool {
    code == sys::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST
        || code == sys::nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED
}

/// An older driver calls a number that it does not know an invalid argument.
fn is_missing(code: sys::nvmlReturn_t) -> bool {
    code == sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED
        || code == sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT
        || code == sys::nvmlReturn_enum_NVML_ERROR_NO_PERMISSION
}

// === the other questions ===

type Engine =
    unsafe extern "C" fn(sys::nvmlDevice_t, *mut c_uint, *mut c_uint) -> sys::nvmlReturn_t;

fn encoder(device: &Device<'_>) -> Answer {
    let symbol = nvml_sym(device.nvml().lib().nvmlDeviceGetEncoderUtilization.as_ref())?;
    engine(device, *symbol, Figure::EncoderBusy)
}

fn decoder(device: &Device<'_>) -> Answer {
    let symbol = nvml_sym(device.nvml().lib().nvmlDeviceGetDecoderUtilization.as_ref())?;
    engine(device, *symbol, Figure::DecoderBusy)
}

fn jpeg(device: &Device<'_>) -> Answer {
    let symbol = nvml_sym(device.nvml().lib().nvmlDeviceGetJpgUtilization.as_ref())?;
    engine(device, *symbol, Figure::JpegBusy)
}

fn optical_flow(device: &Device<'_>) -> Answer {
    let symbol = nvml_sym(device.nvml().lib().nvmlDeviceGetOfaUtilization.as_ref())?;
    engine(device, *symbol, Figure::OpticalFlowBusy)
}

fn engine(device: &Device<'_>, symbol: Engine, figure: Figure) -> Answer {
    let (mut percent, mut period_us) = (0, 0);
    // SAFETY: nvml.h asks for two integers.
    nvml_try(unsafe { symbol(handle(device), &raw mut percent, &raw mut period_us) })?;
    Ok(vec![(figure, percent.into())])
}

fn video_clock(device: &Device<'_>) -> Answer {
    let mhz = device.clock_info(Clock::Video)?;
    Ok(vec![(Figure::VideoClock, if mhz == u32::MAX { u64::MAX } else { mhz.into() })])
}

fn bar1(device: &Device<'_>) -> Answer {
    let memory = device.bar1_memory_info()?;
    Ok(vec![(Figure::Bar1Total, memory.total), (Figure::Bar1Used, memory.used)])
}

fn accounting_mode(device: &Device<'_>) -> Answer {
    Ok(vec![(Figure::AccountingOn, device.is_accounting_enabled()?.into())])
}

/// The second version of the structure: the first has no health, the third says no more of what is
/// shown.
fn fabric(device: &Device<'_>) -> Answer {
    let symbol = nvml_sym(device.nvml().lib().nvmlDeviceGetGpuFabricInfoV.as_ref())?;
    let version = size_of::<sys::nvmlGpuFabricInfo_v2_t>() | 2 << 24;
    let mut answer = sys::nvmlGpuFabricInfo_v2_t {
        version: c_uint::try_from(version).expect("the structure is small"),
        clusterUuid: [0; 16],
        status: sys::nvmlReturn_enum_NVML_SUCCESS,
        cliqueId: 0,
        state: 0,
        healthMask: 0,
    };
    // SAFETY: the callee writes the version of the structure that its first word names.
    nvml_try(unsafe { symbol(handle(device), (&raw mut answer).cast()) })?;
    if u32::from(answer.state) == sys::NVML_GPU_FABRIC_STATE_NOT_SUPPORTED {
        return Err(NvmlError::NotSupported);
    }
    let ended = u32::from(answer.state) == sys::NVML_GPU_FABRIC_STATE_COMPLETED;
    let failed = ended && answer.status != sys::nvmlReturn_enum_NVML_SUCCESS;
    let state = if failed { FABRIC_FAILED } else { answer.state.into() };
    let mut figures = vec![(Figure::FabricState, state)];
    match answer.healthMask & 3 {
        sys::NVML_GPU_FABRIC_HEALTH_MASK_DEGRADED_BW_TRUE => {
            figures.push((Figure::FabricDegraded, 1));
        }
        sys::NVML_GPU_FABRIC_HEALTH_MASK_DEGRADED_BW_FALSE => {
            figures.push((Figure::FabricDegraded, 0));
        }
        _ => {}
    }
    Ok(figures)
}
