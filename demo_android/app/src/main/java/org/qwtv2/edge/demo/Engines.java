package org.qwtv2.edge.demo;

import android.os.Build;
import android.os.Process;
import java.io.File;
import org.qwtv2.edge.demo.core.Engine;
import org.qwtv2.edge.demo.core.FailedException;
import org.qwtv2.edge.demo.core.Failure;

/** The runtimes that come with this app. */
final class Engines implements Engine.Loader {
    @Override
    public Engine load(String runtime, File artifact, int threads) throws FailedException {
        try {
            switch (runtime) {
                case "litert":
                    return new LiteRtEngine(artifact, threads);
                case "executorch":
                    return new ExecuTorchEngine(artifact, threads);
                default:
                    throw new FailedException(Failure.UNSUPPORTED_RUNTIME, "this app has no runtime called " + runtime);
            }
        } catch (LinkageError error) { // the library is not published for this processor
            throw new FailedException(
                    Failure.UNSUPPORTED_RUNTIME, runtime + " can't be loaded on " + abi() + ": " + error.getMessage(), error);
        } catch (RuntimeException error) {
            throw new FailedException(Failure.LOAD_FAILED, String.valueOf(error.getMessage()), error);
        }
    }

    /** The ABI of this process: on 64-bit phones too it is a 32-bit one where only such libraries were installed. */
    static String abi() {
        String[] abis = Process.is64Bit() ? Build.SUPPORTED_64_BIT_ABIS : Build.SUPPORTED_32_BIT_ABIS;
        return abis.length > 0 ? abis[0] : Build.SUPPORTED_ABIS[0];
    }
}
