package org.qwtv2.edge.demo.core;

import java.io.File;
import java.util.List;
import java.util.Map;

/** One artifact loaded in one runtime. Not for use by several threads at once. */
public interface Engine extends AutoCloseable {
    /** The runtime and its kernels, in words. */
    String runtime();

    /** Name of each package of the runtime -> its version. */
    Map<String, String> versions();

    /**
     * Takes the inputs of one invocation, in the artifact's order.
     *
     * @throws FailedException with {@link Failure#WRONG_SHAPE} where the runtime tells that they do not fit.
     */
    void set(List<NdArray> inputs) throws FailedException;

    /** Runs once: this is what is timed. The runtime's Java interface copies inputs in and outputs out here. */
    void invoke() throws FailedException;

    /** The outputs of the last invocation. */
    List<NdArray> outputs() throws FailedException;

    @Override
    void close();

    /** Loads artifacts. */
    interface Loader {
        /**
         * @param runtime "litert" or "executorch".
         * @throws FailedException with {@link Failure#UNSUPPORTED_RUNTIME} or {@link Failure#LOAD_FAILED}.
         */
        Engine load(String runtime, File artifact, int threads) throws FailedException;
    }
}
