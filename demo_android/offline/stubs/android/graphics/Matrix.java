package android.graphics;

public class Matrix {
    public boolean postScale(float x, float y) { return true; }
    public boolean postRotate(float degrees) { return true; }
}
