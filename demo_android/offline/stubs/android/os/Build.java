package android.os;

public class Build {
    public static final String MANUFACTURER = null;
    public static final String MODEL = null;
    public static final String[] SUPPORTED_ABIS = null;
    public static final String[] SUPPORTED_32_BIT_ABIS = null;
    public static final String[] SUPPORTED_64_BIT_ABIS = null;

    public static class VERSION {
        public static final int SDK_INT = Integer.parseInt("0"); // no constant, so that javac does not fold it in
    }
}
