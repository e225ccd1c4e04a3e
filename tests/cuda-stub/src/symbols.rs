//! What the builds export, and which function answers. The only list of names.
//!
//! A macro, because an exported name cannot come from a value: each build expands it with its own
//! kind of entry.

/// Calls `$entry!` with every exported name and the function behind it.
#[macro_export]
macro_rules! symbols {
    ($entry:ident) => {
        $entry! {
            cuInit => system::init;
            cuDriverGetVersion => system::driver_get_version;
            cuGetProcAddress_v2 => system::get_proc_address;
            cuDeviceGet => system::device_get;
            cuDeviceGetCount => system::device_get_count;
            cuDeviceTotalMem_v2 => system::device_total_mem;

            cuCtxCreate_v2 => contexts::create_v2;
            cuCtxCreate_v3 => contexts::create_v3;
            cuCtxCreate_v4 => contexts::create_v4;
            cuCtxDestroy_v2 => contexts::destroy;
            cuCtxGetCurrent => contexts::get;
            cuCtxGetDevice => contexts::get_device;
            cuCtxPopCurrent_v2 => contexts::pop;
            cuCtxPushCurrent_v2 => contexts::push;
            cuCtxSetCurrent => contexts::set;
            cuDevicePrimaryCtxRelease_v2 => contexts::primary_release;
            cuDevicePrimaryCtxReset_v2 => contexts::primary_reset;
            cuDevicePrimaryCtxRetain => contexts::primary_retain;
            cuEventCreate => contexts::event_create;
            cuEventDestroy_v2 => contexts::event_destroy;
            cuEventRecord => contexts::event_record;
            cuEventRecord_ptsz => contexts::event_record;
            cuModuleGetFunction => contexts::module_get_function;
            cuModuleLoadData => contexts::module_load_data;
            cuStreamCreate => contexts::stream_create;
            cuStreamDestroy_v2 => contexts::stream_destroy;

            cuLaunchKernel => launches::kernel;
            cuLaunchKernel_ptsz => launches::kernel;
            cuLaunchKernelEx => launches::kernel_ex;
            cuLaunchKernelEx_ptsz => launches::kernel_ex;
            cuLaunchCooperativeKernel => launches::cooperative;
            cuLaunchCooperativeKernel_ptsz => launches::cooperative;
            cuGraphLaunch => launches::graph;
            cuGraphLaunch_ptsz => launches::graph;

            cuMemAlloc_v2 => memory::alloc;
            cuMemAllocManaged => memory::alloc_managed;
            cuMemAllocPitch_v2 => memory::alloc_pitch;
            cuMemAllocAsync => memory::alloc_async;
            cuMemAllocAsync_ptsz => memory::alloc_async;
            cuMemAllocFromPoolAsync => memory::alloc_from_pool_async;
            cuMemAllocFromPoolAsync_ptsz => memory::alloc_from_pool_async;
            cuMemFree_v2 => memory::free;
            cuMemFreeAsync => memory::free_async;
            cuMemFreeAsync_ptsz => memory::free_async;
            cuMemCreate => memory::create;
            cuMemRelease => memory::release_handle;
            cuMemMap => memory::map;
            cuMemUnmap => memory::unmap;
            cuMemGetInfo_v2 => memory::get_info;
            cuMemAllocHost_v2 => memory::alloc_host;
            cuMemHostAlloc => memory::host_alloc;
            cuMemFreeHost => memory::free_host;
            cuMemHostRegister_v2 => memory::host_register;
            cuIpcOpenMemHandle_v2 => memory::ipc_open;
            cuMemImportFromShareableHandle => memory::import;

            cuMemcpyHtoD_v2 => copies::host_to_device;
            cuMemcpyHtoD_v2_ptds => copies::host_to_device;
            cuMemcpyDtoH_v2 => copies::device_to_host;
            cuMemcpyDtoH_v2_ptds => copies::device_to_host;
            cuMemcpyDtoD_v2 => copies::device_to_device;
            cuMemcpyDtoD_v2_ptds => copies::device_to_device;
            cuMemcpyHtoDAsync_v2 => copies::host_to_device_async;
            cuMemcpyHtoDAsync_v2_ptsz => copies::host_to_device_async;
            cuMemcpyDtoHAsync_v2 => copies::device_to_host_async;
            cuMemcpyDtoHAsync_v2_ptsz => copies::device_to_host_async;
            cuMemcpyDtoDAsync_v2 => copies::device_to_device_async;
            cuMemcpyDtoDAsync_v2_ptsz => copies::device_to_device_async;
            cuMemcpy => copies::any;
            cuMemcpy_ptds => copies::any;
            cuMemcpyAsync => copies::any_async;
            cuMemcpyAsync_ptsz => copies::any_async;
            cuMemcpyPeer => copies::peer;
            cuMemcpyPeer_ptds => copies::peer;
            cuMemcpyPeerAsync => copies::peer_async;
            cuMemcpyPeerAsync_ptsz => copies::peer_async;

            cuCtxSynchronize => waits::context;
            cuStreamSynchronize => waits::stream;
            cuStreamSynchronize_ptsz => waits::stream;
            cuEventSynchronize => waits::event;
        }
    };
}
