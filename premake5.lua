-- Builds with premake5 and with Debian's premake4 4.3: `premake4 --file=premake5.lua gmake && make -C build`.
--   liblsa       C core and CPU kernels                      build/liblsa.so
--   liblsa_cuda  CUDA kernels, only where nvcc is            build/liblsa_cuda.so
--   liblsa_mpi   training on several ranks, where mpicc is   build/liblsa_mpi.so
--   lsa          the executable that embeds LuaJIT           build/bin/lsa
-- Configurations: release, debug (build/debug), sanitize (ASan and UBSan, build/sanitize).
local cuda = "/usr/local/cuda"
local nvcc = cuda .. "/bin/nvcc -forward-unknown-to-host-compiler"
local old = filter == nil                        -- true under premake 4.3

if old then                                      -- .cu is C++, and C++ means nvcc
    local iscpp = path.iscppfile
    path.iscppfile = function (f) return f:match "%.cu$" ~= nil or iscpp(f) end
    premake.gcc.platforms.Native.cxx = nvcc
else
    rule "cuda"
        fileextension ".cu"
        buildmessage "%{file.name}"
        buildoutputs "$(OBJDIR)/%{file.basename}.o"
        buildcommands(nvcc .. ' $(ALL_CXXFLAGS) -o "$@" -MF "$(@:%.o=%.d)" -c "$<"')
end

local outputs = { release = "build", debug = "build/debug", sanitize = "build/sanitize" }

local function each_configuration(set)
    for name, dir in pairs(outputs) do
        configuration(name)
        set(name, dir)
    end
    configuration {}
end

solution "lsa"
    configurations { "release", "debug", "sanitize" }
    location "build"
    includedirs "."
    language "C"
    if old then flags "Symbols" else symbols "On" end   -- otherwise both link with -s
    each_configuration(function (name, dir)
        targetdir(dir)
        objdir("build/obj/" .. name)
        if name == "release" then buildoptions "-O3" end
        if name == "debug" then buildoptions { "-O0" } end
    end)

local warnings = { "-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math" }

project "liblsa"
    targetname "lsa"
    kind "SharedLib"
    files { "core/**.c", "kernels/*.c" }
    excludes { "core/host/*.c", "core/mpi/collective_mpi.c" }
    buildoptions(warnings)
    buildoptions "-fPIC"
    linkoptions { "-Wl,--no-undefined", "-Wl,-z,nodelete" }   -- its threads outlive a dlclose
    links { "m", "dl", "pthread", "jansson", "dnnl", "gomp", "uring", "xxhash", "z" }
    each_configuration(function (name)
        if name == "sanitize" then
            buildoptions { "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer" }
            linkoptions { "-fsanitize=address,undefined" }
            defines "LSA_SYSTEM_MALLOC"
        else
            links "mimalloc"
        end
    end)

project "lsa_executable"
    targetname "lsa"
    kind "ConsoleApp"
    files "core/host/*.c"
    includedirs "/usr/include/luajit-2.1"
    buildoptions(warnings)
    linkoptions "-rdynamic"
    links { "liblsa", "luajit-5.1", "m", "dl", "pthread" }
    each_configuration(function (name, dir)
        targetdir(dir .. "/bin")
        linkoptions "-Wl,-rpath,'$$ORIGIN/..'"
        if name == "sanitize" then
            buildoptions { "-O1", "-fsanitize=address,undefined" }
            linkoptions { "-fsanitize=address,undefined" }
            defines "LSA_SYSTEM_MALLOC"
        else
            links "mimalloc"
        end
    end)

if os.isfile(cuda .. "/bin/nvcc") then
project "liblsa_cuda"
    targetname "lsa_cuda"
    kind "SharedLib"
    files { "core/**.cu", "kernels/*.cu" }
    if not old then rules "cuda" end
    buildoptions { "-O3", "-lineinfo", "-gencode=arch=compute_90a,code=sm_90a", "-gencode=arch=compute_90,code=compute_90", "-Xcompiler=-Wall,-Wextra,-fPIC", "-Werror=all-warnings" }
    libdirs(cuda .. "/lib64")
    linkoptions { "-Wl,-rpath," .. cuda .. "/lib64", "-Wl,-rpath,'$$ORIGIN'", "-Wl,--no-undefined" }
    links { "liblsa", "cublasLt", "cudart", "stdc++", "m" }
end

if os.isfile "/usr/bin/mpicc" then
project "liblsa_mpi"
    targetname "lsa_mpi"
    kind "SharedLib"
    files "core/mpi/collective_mpi.c"
    buildoptions(warnings)
    buildoptions { "-fPIC", "$(shell /usr/bin/mpicc --showme:compile)" }
    linkoptions { "$(shell /usr/bin/mpicc --showme:link)", "-Wl,-rpath,'$$ORIGIN'", "-Wl,--no-undefined" }
    links { "liblsa" }
    each_configuration(function (name)
        if name == "sanitize" then linkoptions "-fsanitize=address,undefined" end
    end)
end
