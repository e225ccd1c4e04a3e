//! The calls for GPM, and nothing else: no judgement. They can block like every call.

use std::collections::BTreeMap;

use nvml_wrapper::Device;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};

use crate::clock;
use crate::model::figures::Figure;
use crate::model::units::BootNs;
use crate::samplers::nvml::gpm::Sampled;
use crate::samplers::nvml::gpm::decode::{Window, window};

const METRICS: [(GpmMetricId, Figure); 13] = [
    (GpmMetricId::GraphicsUtil, Figure::GraphicsActive),
    (GpmMetricId::SmUtil, Figure::SmActive),
    (GpmMetricId::SmOccupancy, Figure::SmOccupancy),
    (GpmMetricId::AnyTensorUtil, Figure::TensorActive),
    (GpmMetricId::DramBwUtil, Figure::DramActive),
    (GpmMetricId::IntegerUtil, Figure::IntegerActive),
    (GpmMetricId::Fp64Util, Figure::Fp64Active),
    (GpmMetricId::Fp32Util, Figure::Fp32Active),
    (GpmMetricId::Fp16Util, Figure::Fp16Active),
    (GpmMetricId::PcieTxPerSec, Figure::PcieTransmitRate),
    (GpmMetricId::PcieRxPerSec, Figure::PcieReceiveRate),
    (GpmMetricId::NvlinkTotalTxPerSec, Figure::NvlinkTransmitRate),
    (GpmMetricId::NvlinkTotalRxPerSec, Figure::NvlinkReceiveRate),
];

/// The newest sample of a device, or of each of its GPU instances.
#[derive(Debug, Default)]
pub(crate) struct Samples<'library> {
    /// `None` until the device was asked.
    supported: Option<bool>,
    taken: BTreeMap<Option<u32>, (BootNs, GpmSample<'library>)>,
}

/// The metric that is this figure, as `nvml.h` numbers it.
pub(crate) fn number(figure: Figure) -> Option<u32> {
    METRICS.iter().find(|it| it.1 == figure).map(|it| it.0.as_c())
}

// === impl Samples ===

impl<'library> Samples<'library> {
    /// Samples each of `which`, and says what came between that and the sample before. What was not
    /// sampled before is not in the answer yet.
    pub(crate) fn ask(
        &mut self,
        device: &Device<'library>,
        which: &[Option<u32>],
    ) -> Result<Sampled, NvmlError> {
        let supported = match self.supported {
            Some(supported) => supported,
            None => *self.supported.insert(device.gpm_support()?),
        };
        if !supported {
            return Err(NvmlError::NotSupported);
        }
        self.taken.retain(|instance, _| which.contains(instance));
        let mut sampled = Sampled::new();
        for instance in which {
            sampled.extend(self.step(device, *instance)?.map(|it| (*instance, it)));
        }
        Ok(sampled)
    }

    /// The instances are others than before: what they counted is not comparable.
    pub(crate) fn forget(&mut self) {
        self.taken.clear();
    }

    fn step(
        &mut self,
        device: &Device<'library>,
        instance: Option<u32>,
    ) -> Result<Option<Vec<(Figure, f64)>>, NvmlError> {
        let now = clock::boot();
        let before = self.taken.get(&instance).map(|(at, _)| window(now.since(*at)));
        if before == Some(Window::Early) {
            return Ok(None);
        }
        let sample = match instance {
            Some(gpu_instance) => device.gpm_mig_sample(gpu_instance)?,
            None => device.gpm_sample()?,
        };
        let older = self.taken.insert(instance, (now, sample));
        let older = older.filter(|_| before == Some(Window::Good));
        let (Some((_, older)), Some((_, newer))) = (older, self.taken.get(&instance)) else {
            return Ok(None);
        };
        let ids = METRICS.map(|it| it.0);
        let values = gpm_metrics_get(device.nvml(), &older, newer, &ids)?;
        let named = METRICS.iter().zip(values);
        Ok(Some(named.filter_map(|((_, figure), it)| Some((*figure, it.ok()?.value))).collect()))
    }
}
